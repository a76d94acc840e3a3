// Attention over a tile on CUDA cores: float32 throughout, for any dtype.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// A warp takes RT rows and eight keys at a time. For the scores, lanes are 4 groups of 8: group g
// takes keys g and g + 4, its lanes every eighth piece of the head dimension. For the values, a
// lane owns columns of all rows.
template <class Shape_, int RT_>
struct SimtMath {
  using Shape = Shape_;
  using T = typename Shape::T;
  using Q = float;
  static constexpr int kBehindRows = 0;
  static constexpr bool kHeld = false, kExact = true;  // a zero weight never meets its value
  static constexpr int RT = RT_, DP = Shape::DP, kSub = 8, kPair = 2;
  static constexpr int kBlocksPerSm = DP == 256 || RT == 8 ? 2 : 3;  // registers
  static constexpr int kRowBytes = DP * int(sizeof(T)) / 32;         // of one value row per lane
  static constexpr int kUnitBytes = kRowBytes < 16 ? kRowBytes : 16;
  static constexpr int kUnit = kUnitBytes / int(sizeof(T)), kUnits = kRowBytes / kUnitBytes;

  const Plan& plan;
  const Work& w;
  const Row* rows;
  const float* queries;  // [rows, DP], zero where there is no row or column
  int lane, row0, wk;    // first row of this warp; which of the warps that share those rows
  float o[RT][kUnits * kUnit], m[RT], l[RT];  // l: this lane group's keys only

  template <class Stream>
  __device__ SimtMath(const Plan& plan, const Work& w, float* q, const Row* rows,
                      const Stream& stream)
      : plan(plan), w(w), rows(rows), queries(q), lane(threadIdx.x % 32) {
    const int warp = threadIdx.x / 32;
    row0 = warp % plan.warps_m * RT;
    wk = warp / plan.warps_m;
    for (int i = threadIdx.x; i < plan.warps_m * RT * DP; i += kThreads) {
      const int r = i / DP, d = i % DP;
      q[i] = r < w.rows() && d < plan.p.D ? stream.query(r, d) : 0.f;
    }
  }

  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < RT; ++r) {
      m[r] = -INFINITY;
      l[r] = 0.f;
#pragma unroll
      for (int e = 0; e < kUnits * kUnit; ++e) o[r][e] = 0.f;
    }
  }

  __device__ bool spoiled() const { return false; }

  template <class View>
  __device__ void tile(const View& v) {
    const int each = Shape::KT / (kWarps / plan.warps_m);
    if (row0 >= w.rows()) return;
    for (int key0 = wk * each; key0 < (wk + 1) * each && key0 < v.count; key0 += kSub) {
      float s[RT][kPair];
      dot(v.keys, key0, s);
      to_logits<RT * kPair>(
          plan.p, w, rows, v, v.scores && lane % 8 == 0,
          [&](int i) { return Element{row0 + i / kPair, key0 + lane / 8 + i % kPair * 4}; },
          [&](int i) -> float& { return s[i / kPair][i % kPair]; });
      if (!plan.p.v) continue;
      to_weights(s);
      add_values(v.values, key0, s);
    }
  }

  // s = q . k for this lane's two keys; all eight lanes of a group end with the whole sum.
  __device__ void dot(const T* keys, int key0, float (&s)[RT][kPair]) const {
    const int group = lane / 8;
#pragma unroll
    for (int r = 0; r < RT; ++r) s[r][0] = s[r][1] = 0.f;
#pragma unroll
    for (int c = 0; c < Shape::kPieces / 8; ++c) {
      const int piece = lane % 8 + 8 * c;
      using Piece = Pack<T, Shape::kPiece>;
      Piece k[kPair];
#pragma unroll
      for (int i = 0; i < kPair; ++i)
        k[i] = *reinterpret_cast<const Piece*>(keys + Shape::at(key0 + group + 4 * i, piece));
#pragma unroll
      for (int r = 0; r < RT; ++r) {
        const auto q = *reinterpret_cast<const Pack<float, Shape::kPiece>*>(
            queries + (row0 + r) * DP + piece * Shape::kPiece);
#pragma unroll
        for (int e = 0; e < Shape::kPiece; ++e) {
          s[r][0] += q.at[e] * to_float(k[0].at[e]);
          s[r][1] += q.at[e] * to_float(k[1].at[e]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < RT; ++r)
#pragma unroll
      for (int i = 0; i < kPair; ++i) s[r][i] = warp_sum<8>(s[r][i]);
  }

  // Online softmax: s becomes weights relative to the running maximum.
  __device__ void to_weights(float (&s)[RT][kPair]) {
#pragma unroll
    for (int r = 0; r < RT; ++r) {
      float top = fmaxf(s[r][0], s[r][1]);
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 8));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 16));
      top = fmaxf(top, m[r]);
      const float base = top > -INFINITY ? top : 0.f;
      if (top > m[r]) {
        const float gain = ptx::exp2_fast((m[r] - base) * kLog2e);
        l[r] *= gain;
#pragma unroll
        for (int e = 0; e < kUnits * kUnit; ++e) o[r][e] = weighed(o[r][e], gain);
        m[r] = top;
      }
#pragma unroll
      for (int i = 0; i < kPair; ++i) {
        s[r][i] = ptx::exp2_fast((s[r][i] - base) * kLog2e);
        l[r] += s[r][i];
      }
    }
  }

  __device__ void add_values(const T* values, int key0, const float (&s)[RT][kPair]) {
    using Unit = Pack<T, kUnit>;
#pragma unroll
    for (int j = 0; j < kSub; ++j) {
      Unit x[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int column = (lane + 32 * u) * kUnit;
        x[u] = *reinterpret_cast<const Unit*>(values + Shape::at(key0 + j, column / Shape::kPiece) +
                                              column % Shape::kPiece);
      }
#pragma unroll
      for (int r = 0; r < RT; ++r) {
        const float weight = __shfl_sync(kFullWarp, s[r][j / 4], j % 4 * 8);
        if (weight == 0.f) continue;
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
#pragma unroll
          for (int e = 0; e < kUnit; ++e) o[r][u * kUnit + e] += weight * to_float(x[u].at[e]);
      }
    }
  }

  // partial [kWarps, RT, DP], then maxima and totals [kWarps, RT] each.
  __device__ void store(float* partial, float* tops) {
    const int warp_row = (wk * plan.warps_m) * RT + row0;
#pragma unroll
    for (int r = 0; r < RT; ++r) {
      float total = l[r] + __shfl_xor_sync(kFullWarp, l[r], 8);
      total += __shfl_xor_sync(kFullWarp, total, 16);
      if (lane == 0) {
        tops[warp_row + r] = m[r];
        tops[kWarps * RT + warp_row + r] = total;
      }
#pragma unroll
      for (int e = 0; e < kUnits * kUnit; ++e)
        partial[(warp_row + r) * DP + (lane + e / kUnit * 32) * kUnit + e % kUnit] = o[r][e];
    }
  }
};

}  // namespace
}  // namespace tokops::paged
