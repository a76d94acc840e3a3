// Attention over a tile on tensor cores: 16 rows a warp, bf16 or f16 operands, float32 sums.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// A warp takes 16 rows and 16 keys at a time. Lane (g, t) = (lane / 4, lane % 4) holds of each 16 x
// 8 result the rows g and g + 8 at columns 2t and 2t + 1; the weights, rounded to T, are in place
// as operand of the second product.
template <class Shape_, bool kExact_ = false>
struct MmaMath {
  using Shape = Shape_;
  using Exact = MmaMath<Shape, true>;
  static constexpr bool kExact = kExact_, kHeld = false;
  static constexpr int kBehindRows = 0;
  using T = typename Shape::T;
  using Q = T;
  static constexpr int RT = 16, DP = Shape::DP, kSub = 16;
  static constexpr int kBlocksPerSm = DP == 256 ? 1 : 3;

  const Plan& plan;
  const Work& w;
  const Row* rows;
  const T* queries;  // [rows, DP] in the tiles' layout, zero where there is no row or column
  int lane, row0, wk;
  float o[DP / 8][4], m[2], l[2];  // l: this lane's columns only

  template <class Stream>
  __device__ MmaMath(const Plan& plan, const Work& w, T* q, const Row* rows, const Stream& stream)
      : plan(plan), w(w), rows(rows), queries(q), lane(threadIdx.x % 32) {
    const int warp = threadIdx.x / 32;
    row0 = warp % plan.warps_m * RT;
    wk = warp / plan.warps_m;
    for (int i = threadIdx.x; i < plan.warps_m * RT * DP; i += kThreads) {
      const int r = i / DP, d = i % DP;
      const float x = r < w.rows() && d < plan.p.D ? stream.query(r, d) : 0.f;
      q[Shape::at(r, d / Shape::kPiece) + d % Shape::kPiece] = from_float<T>(x);
    }
  }

  __device__ void reset() {
#pragma unroll
    for (int c = 0; c < DP / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[c][e] = 0.f;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0.f;
  }

  // Whether the sums hold something that is not finite: a value may have met a weight of zero.
  __device__ bool spoiled() const {
    float probe = 0.f;
#pragma unroll
    for (int c = 0; c < DP / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) probe += o[c][e] * 0.f;
    return probe != 0.f;
  }

  template <class View>
  __device__ void tile(const View& v) {
    const int share = Shape::KT / (kWarps / plan.warps_m), each = share < kSub ? kSub : share;
    if (row0 >= w.rows()) return;
    for (int key0 = wk * each; key0 < (wk + 1) * each && key0 < v.count; key0 += kSub) {
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
      to_weights(s);
      if constexpr (kExact)
        add_values_exactly(v.values, key0, s);
      else
        add_values(v.values, key0, s);
    }
  }

  __device__ void dot(const T* keys, int key0, float (&s)[2][4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][e] = s[1][e] = 0.f;
#pragma unroll 8  // all 16 of D = 256 would spill
    for (int d = 0; d < DP / 16; ++d) {
      uint32_t a[4], k[4];
      ptx::ldmatrix_x4(a, queries + Shape::at(row0 + lane % 16, 2 * d + lane / 16));
      ptx::ldmatrix_x4(k, keys + Shape::at(key0 + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
      ptx::mma_16816<T>(s[0], a, {k[0], k[1]});
      ptx::mma_16816<T>(s[1], a, {k[2], k[3]});
    }
  }

  // Online softmax: s becomes weights relative to the running maximum.
  __device__ void to_weights(float (&s)[2][4]) {
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
      for (int c = 0; c < DP / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[c][e] = weighed(o[c][e], gain[e / 2]);
    }
  }

  __device__ void add_values(const T* values, int key0, const float (&s)[2][4]) {
    const uint32_t a[4] = {pack_two<T>(s[0][0], s[0][1]), pack_two<T>(s[0][2], s[0][3]),
                           pack_two<T>(s[1][0], s[1][1]), pack_two<T>(s[1][2], s[1][3])};
#pragma unroll
    for (int d = 0; d < DP / 16; ++d) {
      uint32_t x[4];
      ptx::ldmatrix_x4_trans(x, values + Shape::at(key0 + lane % 16, 2 * d + lane / 16));
      ptx::mma_16816<T>(o[2 * d], a, {x[0], x[1]});
      ptx::mma_16816<T>(o[2 * d + 1], a, {x[2], x[3]});
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

  // partial [kWarps, RT, DP], then maxima and totals [kWarps, RT] each.
  __device__ void store(float* partial, float* tops) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = wk * plan.warps_m * RT + row0 + lane / 4 + 8 * half;
      const float total = warp_sum<4>(l[half]);
      if (lane % 4 == 0) {
        tops[r] = m[half];
        tops[kWarps * RT + r] = total;
      }
#pragma unroll
      for (int c = 0; c < DP / 8; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) partial[r * DP + c * 8 + lane % 4 * 2 + e] = o[c][2 * half + e];
    }
  }
};

}  // namespace
}  // namespace tokops::paged
