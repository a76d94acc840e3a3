#include "common/cuda.cuh"
#include "grammar/compose_filters.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;

// One thread per word of one row: that word of every mask is read once.
__global__ void __launch_bounds__(kThreads)
    compose_filters_kernel(const __grid_constant__ ComposeFilters p) {
  const int64_t row = blockIdx.x, word = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  if (word >= p.W) return;
  int32_t all = p.masks[0][row * p.strides[0] + word];
  for (int f = 1; f < p.count; ++f) all &= p.masks[f][row * p.strides[f] + word];
  p.out[row * p.W + word] = all;
}

}  // namespace

void compose_filters(const ComposeFilters& p, const Queue& q) {
  const dim3 grid(unsigned(p.B), unsigned((p.W + kThreads - 1) / kThreads));
  launch(compose_filters_kernel, grid, dim3(kThreads), 0, q, p);
}

}  // namespace tokops
