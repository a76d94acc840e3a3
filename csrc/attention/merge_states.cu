#include "attention/merge_states.h"
#include "common/cuda.cuh"

namespace tokops {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = 4;  // of a lane at a time

// One warp per row; every lane finds the weights, then each sums its columns over the parts.
template <class T>
__global__ void merge_states_kernel(MergeStates p) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  float top = -INFINITY, total = 0.f;
  for (int i = 0; i < p.parts; ++i) {
    const float x = p.lses[i][row];
    top = x > top || x != x ? x : top;
  }
  const float base = top == -INFINITY ? 0.f : top;
  for (int i = 0; i < p.parts; ++i) total += expf(p.lses[i][row] - base);
  for (int64_t d0 = lane; d0 < p.D; d0 += 32 * kColumns) {
    float sum[kColumns] = {};
    for (int i = 0; i < p.parts; ++i) {
      const float weight = expf(p.lses[i][row] - base);
      if (weight == 0.f) continue;  // a part without weight may hold anything, NaN included
      const T* from = static_cast<const T*>(p.outs[i]) + row * p.D;
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        if (d0 + 32 * j < p.D) sum[j] += weight / total * to_float(from[d0 + 32 * j]);
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (d0 + 32 * j < p.D)
        static_cast<T*>(p.out)[row * p.D + d0 + 32 * j] = from_float<T>(sum[j]);
  }
  if (lane == 0) p.lse[row] = base + logf(total);
}

}  // namespace

void merge_states(const MergeStates& p, const Queue& q) {
  dispatch<float, __nv_bfloat16, __half>(p.dtype, "merge_states", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(merge_states_kernel<T>, dim3(unsigned((p.rows + kWarps - 1) / kWarps)),
           dim3(kWarps * 32), 0, q, p);
  });
}

}  // namespace tokops
