// Attention over a tile on tensor cores: 16 rows a warp, bf16 or f16 operands, float32 sums.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// The fragments of 16 rows and N * 8 columns that a warp sums up: lane (g, t) = (lane / 4, lane %
// 4) holds of each 16 x 8 result the rows g and g + 8 at columns 2t and 2t + 1.
template <int N>
__device__ __forceinline__ void clear_sums(float (&o)[N][4], float (&m)[2], float (&l)[2]) {
#pragma unroll
  for (int c = 0; c < N; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e) o[c][e] = 0.f;
  m[0] = m[1] = -INFINITY;
  l[0] = l[1] = 0.f;
}

// Whether the sums hold something that is not finite: a value may have met a weight of zero.
template <int N>
__device__ __forceinline__ bool has_odd(const float (&o)[N][4]) {
  float probe = 0.f;
#pragma unroll
  for (int c = 0; c < N; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e) probe += o[c][e] * 0.f;
  return probe != 0.f;
}

// Online softmax of the scores of 16 keys: s becomes weights relative to the running maxima m; l,
// this lane's part of the totals, and the sums follow.
template <int N>
__device__ __forceinline__ void to_weights(float (&s)[2][4], float (&o)[N][4], float (&m)[2],
                                           float (&l)[2]) {
  float gain[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = m[half];
#pragma unroll
    for (int i = 0; i < 4; ++i) top = fmaxf(top, s[i / 2][2 * half + i % 2]);
    top = warp_max<4>(top);
    const float base = top > -INFINITY ? top : 0.f;
    gain[half] = top > m[half] ? ptx::exp2_fast((m[half] - base) * kLog2e) : 1.f;
    m[half] = top;
    l[half] *= gain[half];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& x = s[i / 2][2 * half + i % 2];
      x = ptx::exp2_fast((x - base) * kLog2e);
      l[half] += x;
    }
  }
  if (__any_sync(kFullWarp, gain[0] < 1.f || gain[1] < 1.f)) {
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[c][e] = weighed(o[c][e], gain[e / 2]);
  }
}

// Writes a warp's sums to its rows of partial [kWarps, 16, DP], and its maxima and totals to those
// of tops [2, kWarps, 16]. dim(c, i) is the dimension of column i of sum c.
template <int N, class Dim>
__device__ __forceinline__ void store_sums(const float (&o)[N][4], const float (&m)[2],
                                           const float (&l)[2], int first, float* partial,
                                           float* tops, Dim dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + lane / 4 + 8 * half;
    const float total = warp_sum<4>(l[half]);
    if (lane % 4 == 0) {
      tops[r] = m[half];
      tops[kWarps * 16 + r] = total;
    }
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        partial[r * N * 8 + dim(c, lane % 4 * 2 + e)] = o[c][2 * half + e];
  }
}

// A warp takes 16 rows and 16 keys at a time. The weights, rounded to the operands' type, are in
// place for the second product.
template <class Shape_, class Operand = typename Shape_::T, bool kExact_ = false>
struct MmaMath {
  using Shape = Shape_;
  using Exact = MmaMath<Shape, Operand, true>;
  static constexpr bool kExact = kExact_;
  using T = typename Shape::T;
  using Q = Operand;
  static constexpr bool kHeld = Shape::Team::kTeams > 1;  // queries stay in registers
  static constexpr int RT = 16, DP = Shape::DP, kSub = 16;
  static constexpr int kBlocksPerSm = DP == 256 ? 1 : 3;

  const Plan& plan;
  const Work& w;
  const Row* rows;
  const Q* queries;  // [rows, DP] in the tiles' layout, zero where there is no row or column
  int lane, row0, wk;
  uint32_t held[kHeld ? DP / 16 : 1][4];
  float o[DP / 8][4], m[2], l[2];  // l: this lane's columns only

  template <class Stream>
  __device__ MmaMath(const Plan& plan, const Work& w, Q* q, const Row* rows, const Stream& stream)
      : plan(plan), w(w), rows(rows), queries(q), lane(threadIdx.x % 32) {
    const int warp = threadIdx.x / 32;
    row0 = warp % plan.warps_m * RT;
    wk = warp / plan.warps_m;
    for (int i = threadIdx.x; i < plan.warps_m * RT * DP; i += kThreads) {
      const int r = i / DP, d = i % DP;
      const float x = r < w.rows() && d < plan.p.D ? stream.query(r, d) : 0.f;
      q[Shape::at(r, d / Shape::kPiece) + d % Shape::kPiece] = from_float<Q>(x);
    }
  }

  __device__ void hold() {
    __syncthreads();  // the queries are written
#pragma unroll
    for (int d = 0; d < (kHeld ? DP / 16 : 0); ++d) load_queries(d, held[d]);
    __syncthreads();  // and read
  }
  __device__ void load_queries(int d, uint32_t (&a)[4]) const {
    ptx::ldmatrix_x4(a, queries + Shape::at(row0 + lane % 16, 2 * d + lane / 16));
  }

  __device__ void reset() { clear_sums(o, m, l); }
  __device__ bool spoiled() const { return has_odd(o); }

  template <class View>
  __device__ void tile(const View& v) {
    const int share = Shape::KT / (kWarps / plan.warps_m);
    const int each = kHeld ? Shape::KT : share < kSub ? kSub : share;
    if (row0 >= w.rows()) return;
    const int begin = kHeld ? 0 : wk * each;
    for (int key0 = begin; key0 < begin + each && key0 < v.count; key0 += kSub) {
      float s[2][4];  // keys key0.. and key0 + 8..
      dot(v.keys, key0, s);
      to_logits<8>(
          plan.p, w, rows, v, v.scores,
          [&](int i) {
            return Element{row0 + lane / 4 + i / 4 * 8,
                           key0 + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2};
          },
          [&](int i) -> float& { return s[i / 2 % 2][i / 4 * 2 + i % 2]; });
      if (!plan.p.v) continue;
      to_weights(s, o, m, l);
      if constexpr (kExact)
        add_values_exactly(v.values, key0, s);
      else
        add_values(v.values, key0, s);
    }
  }

  // Pairs of elements as operands: bf16 becomes float16 where queries have more bits than bf16
  // keeps.
  __device__ static void to_operands(uint32_t (&x)[4]) {
    if constexpr (!std::is_same_v<T, Q>) {
      static_assert(std::is_same_v<T, __nv_bfloat16> && std::is_same_v<Q, __half>);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = ptx::pack_halves(__uint_as_float(x[i] << 16), __uint_as_float(x[i] & 0xffff0000u));
    }
  }

  __device__ void dot(const T* keys, int key0, float (&s)[2][4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][e] = s[1][e] = 0.f;
#pragma unroll 8  // all 16 of D = 256 would spill
    for (int d = 0; d < DP / 16; ++d) {
      uint32_t a[4], k[4];
      if (kHeld)
        for (int i = 0; i < 4; ++i) a[i] = held[kHeld ? d : 0][i];
      else
        load_queries(d, a);
      ptx::ldmatrix_x4(k, keys + Shape::at(key0 + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
      to_operands(k);
      ptx::mma_16816<Q>(s[0], a, {k[0], k[1]});
      ptx::mma_16816<Q>(s[1], a, {k[2], k[3]});
    }
  }

  __device__ void add_values(const T* values, int key0, const float (&s)[2][4]) {
    const uint32_t a[4] = {pack_two<Q>(s[0][0], s[0][1]), pack_two<Q>(s[0][2], s[0][3]),
                           pack_two<Q>(s[1][0], s[1][1]), pack_two<Q>(s[1][2], s[1][3])};
#pragma unroll
    for (int d = 0; d < DP / 16; ++d) {
      uint32_t x[4];
      ptx::ldmatrix_x4_trans(x, values + Shape::at(key0 + lane % 16, 2 * d + lane / 16));
      to_operands(x);
      ptx::mma_16816<Q>(o[2 * d], a, {x[0], x[1]});
      ptx::mma_16816<Q>(o[2 * d + 1], a, {x[2], x[3]});
    }
  }

  // The same sum key by key, leaving out weights of zero, whatever their value holds.
  __device__ void add_values_exactly(const T* values, int key0, const float (&s)[2][4]) {
#pragma unroll 1
    for (int j = 0; j < kSub; ++j) {
      float weight[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = j < 8 ? s[0][2 * half] : s[1][2 * half];
        const float high = j < 8 ? s[0][2 * half + 1] : s[1][2 * half + 1];
        weight[half] = __shfl_sync(kFullWarp, j % 2 ? high : low, lane / 4 * 4 + j % 8 / 2);
      }
#pragma unroll
      for (int c = 0; c < DP / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float x = to_float(values[Shape::at(key0 + j, c) + lane % 4 * 2 + e % 2]);
          if (weight[e / 2] != 0.f) o[c][e] += weight[e / 2] * x;
        }
    }
  }

  __device__ void store(float* partial, float* tops) const {
    store_sums(o, m, l, wk * plan.warps_m * RT + row0, partial, tops,
               [](int c, int i) { return c * 8 + i; });
  }
};

}  // namespace
}  // namespace tokops::paged
