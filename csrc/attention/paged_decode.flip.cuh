// Attention of up to 16 rows on tensor cores with the operands' parts exchanged: keys, and
// dimensions of values, are the 16 rows of a product and queries its 8 columns, so that a group of
// up to 8 heads, the usual case of a decoding step, wastes nothing.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// A warp's running sums. With (g, t) = (lane / 4, lane % 4), the lane holds of each 16 x 8 result
// of column tile j: at [j][0] and [1] row g, columns 2t and 2t + 1, at [2] and [3] row g + 8.
// Columns are query rows 8 j + 2t + i; rows are keys in scores, dimensions in sums.
template <int kTiles, int N>
struct FlipSums {
  float o[kTiles][N][4], m[kTiles][2], l[kTiles][2];  // l: of this lane's keys only

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < N; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[j][c][e] = 0.f;
      m[j][0] = m[j][1] = -INFINITY;
      l[j][0] = l[j][1] = 0.f;
    }
  }

  // Whether something is not finite: a value may have met a weight of zero.
  __device__ bool odd() const {
    float probe = 0.f;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int c = 0; c < N; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) probe += o[j][c][e] * 0.f;
    return probe != 0.f;
  }

  // Scores of 16 keys become weights relative to m, which follows the maximum only when that has
  // left it by kAhead: until then weights are up to 2^kAhead and no sum has to be scaled.
  static constexpr float kAhead = 8.f;
  __device__ __forceinline__ void weigh(float (&s)[kTiles][4]) {
    bool ahead = false;
    float top[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        top[j][i] = fmaxf(s[j][i], s[j][2 + i]);
        ahead |= top[j][i] > m[j][i] + kAhead / kLog2e;
      }
    if (__any_sync(kFullWarp, ahead)) rescale(top);
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float base = m[j][i] > -INFINITY ? m[j][i] : 0.f;
#pragma unroll
        for (int e = i; e < 4; e += 2) {
          s[j][e] = ptx::exp2_fast((s[j][e] - base) * kLog2e);
          l[j][i] += s[j][e];
        }
      }
  }
  // Brings m to the maximum of what it was and `top`, over all keys.
  __device__ __forceinline__ void rescale(float (&top)[kTiles][2]) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = fmaxf(top[j][i], m[j][i]);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
          x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, lanes));
        const float gain = x > m[j][i] ? ptx::exp2_fast((m[j][i] - x) * kLog2e) : 1.f;
        m[j][i] = x;
        l[j][i] *= gain;
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int e = i; e < 4; e += 2) o[j][c][e] = weighed(o[j][c][e], gain);
      }
  }

  // The weight of key `key` of 16 and of the lane's two columns of tile j.
  __device__ static void weights_of(const float (&s)[4], int from, bool second,
                                    float (&weight)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      weight[i] = __shfl_sync(kFullWarp, second ? s[2 + i] : s[i], from * 4 + threadIdx.x % 4);
  }

  // The first kStored sums to partial [kWarps, 8 kTiles, 16 kStored], and maxima and totals to tops
  // [2, kWarps, 8 kTiles]. dim(c, r) is the dimension of row r of sum c.
  template <int kStored, class Dim>
  __device__ void store(float* partial, float* tops, Dim dim) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = (warp * kTiles + j) * 8 + lane % 4 * 2 + i;
        float total = l[j][i];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
          total += __shfl_xor_sync(kFullWarp, total, lanes);
        if (lane / 4 == 0) {
          tops[r] = m[j][i];
          tops[kWarps * kTiles * 8 + r] = total;
        }
#pragma unroll
        for (int c = 0; c < kStored; ++c)
#pragma unroll
          for (int e = i; e < 4; e += 2)
            partial[r * kStored * 16 + dim(c, lane / 4 + e / 2 * 8)] = o[j][c][e];
      }
  }
};

// Weights of 16 keys and 8 columns as operand of the second product, whose rows are keys.
template <class Q>
__device__ __forceinline__ void as_operand(const float (&s)[4], uint32_t (&b)[2]) {
  b[0] = ptx::transpose(pack_two<Q>(s[0], s[1]));
  b[1] = ptx::transpose(pack_two<Q>(s[2], s[3]));
}

// Full-precision tiles. Operand: the type of queries and weights; bf16 tiles become float16 where
// those have more bits than bf16 keeps.
template <class Shape_, int kTiles, class Operand = typename Shape_::T, bool kExact_ = false>
struct FlipMath {
  using Shape = Shape_;
  using Exact = FlipMath<Shape, kTiles, Operand, true>;
  using T = typename Shape::T;
  using Q = Operand;
  static constexpr bool kExact = kExact_, kHeld = true;
  static constexpr int kBehindRows = 0;
  static constexpr int RT = 8 * kTiles, DP = Shape::DP, kSub = 16, kBlocksPerSm = kStreamBlocks;

  const Plan& plan;
  const Work& w;
  const Row* rows;
  const Q* queries;  // [rows, DP], zero where there is no row or column
  int lane;
  uint32_t held[kTiles][DP / 16][2];
  FlipSums<kTiles, DP / 16> sums;

  template <class Stream>
  __device__ FlipMath(const Plan& plan, const Work& w, Q* q, const Row* rows, const Stream& stream)
      : plan(plan), w(w), rows(rows), queries(q), lane(threadIdx.x % 32) {
    for (int i = threadIdx.x; i < RT * DP; i += kThreads) {
      const int r = i / DP, d = i % DP;
      q[i] = from_float<Q>(r < w.rows() && d < plan.p.D ? stream.query(r, d) : 0.f);
    }
  }

  __device__ void hold() {
    __syncthreads();  // the queries are written
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int d = 0; d < DP / 16; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          held[j][d][i] = *reinterpret_cast<const uint32_t*>(queries + (8 * j + lane / 4) * DP +
                                                             d * 16 + i * 8 + lane % 4 * 2);
    __syncthreads();  // and read
  }

  __device__ void reset() { sums.clear(); }
  __device__ bool spoiled() const { return sums.odd(); }

  template <class View>
  __device__ void tile(const View& v) {
#pragma unroll 1
    for (int key0 = 0; key0 < Shape::KT && key0 < v.count; key0 += kSub) {
      float s[kTiles][4];
      dot(v.keys, key0, s);
      to_logits<4 * kTiles>(
          plan.p, w, rows, v, v.scores,
          [&](int i) {
            return Element{i / 4 * 8 + lane % 4 * 2 + i % 2, key0 + lane / 4 + i / 2 % 2 * 8};
          },
          [&](int i) -> float& { return s[i / 4][i % 4]; });
      if (!plan.p.v) continue;
      sums.weigh(s);
      if constexpr (kExact)
        add_values_exactly(v.values, key0, s);
      else
        add_values(v.values, key0, s);
    }
  }

  __device__ static void to_operands(uint32_t (&x)[4]) {
    if constexpr (!std::is_same_v<T, Q>) {
      static_assert(std::is_same_v<T, __nv_bfloat16> && std::is_same_v<Q, __half>);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = ptx::pack_halves(__uint_as_float(x[i] << 16), __uint_as_float(x[i] & 0xffff0000u));
    }
  }

  __device__ __forceinline__ void dot(const T* keys, int key0, float (&s)[kTiles][4]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = 0.f;
    const int row = key0 + lane / 8 % 2 * 8 + lane % 8;
    const ptx::Shared from = ptx::shared_at(keys);
#pragma unroll
    for (int d = 0; d < DP / 16; ++d) {
      uint32_t k[4];
      ptx::ldmatrix_x4(k, from + Shape::at(row, 2 * d + lane / 16) * 2);
      to_operands(k);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) ptx::mma_16816<Q>(s[j], k, held[j][d]);
    }
  }

  __device__ __forceinline__ void add_values(const T* values, int key0,
                                             const float (&s)[kTiles][4]) {
    uint32_t b[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) as_operand<Q>(s[j], b[j]);
    const int row = key0 + lane / 16 * 8 + lane % 8;
    const ptx::Shared from = ptx::shared_at(values);
#pragma unroll
    for (int c = 0; c < DP / 16; ++c) {
      uint32_t x[4];
      ptx::ldmatrix_x4_trans(x, from + Shape::at(row, 2 * c + lane / 8 % 2) * 2);
      to_operands(x);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) ptx::mma_16816<Q>(sums.o[j][c], x, b[j]);
    }
  }

  // The same sum key by key, leaving out weights of zero, whatever their value holds.
  __device__ void add_values_exactly(const T* values, int key0, const float (&s)[kTiles][4]) {
#pragma unroll 1
    for (int k = 0; k < kSub; ++k)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        float weight[2];
        sums.weights_of(s[j], k % 8, k >= 8, weight);
#pragma unroll
        for (int c = 0; c < DP / 16; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int piece = 2 * c + e / 2;
            const float x = to_float(values[Shape::at(key0 + k, piece) + lane / 4]);
            if (weight[e % 2] != 0.f) sums.o[j][c][e] += weight[e % 2] * x;
          }
      }
  }

  __device__ void store(float* partial, float* tops) const {
    sums.template store<DP / 16>(partial, tops, [](int c, int r) { return c * 16 + r; });
  }
};

}  // namespace
}  // namespace tokops::paged
