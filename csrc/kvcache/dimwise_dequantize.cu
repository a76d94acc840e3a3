#include "common/cuda.cuh"
#include "kvcache/dimwise_dequantize.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads >= kMostLevels);
constexpr int64_t kPerThread = 8, kMostBlocks = 2048;

// Every block fills the table, NaN where there is no level, then looks its codes up.
__global__ void dimwise_dequantize_kernel(DimwiseDequantize p) {
  __shared__ float table[kMostLevels];
  const int i = int(threadIdx.x);
  if (i < kMostLevels) table[i] = i < p.count ? dimwise_value(p.scale, p.levels[i]) : NAN;
  __syncthreads();
  for (int64_t j = int64_t(blockIdx.x) * kThreads + i; j < p.n; j += int64_t(gridDim.x) * kThreads)
    p.values[j] = table[p.codes[j]];
}

}  // namespace

void dimwise_dequantize(const DimwiseDequantize& p, const Queue& q) {
  const int64_t wanted = (p.n + kThreads * kPerThread - 1) / (kThreads * kPerThread);
  const int64_t blocks = wanted < kMostBlocks ? wanted : kMostBlocks;
  launch(dimwise_dequantize_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, q, p);
}

}  // namespace tokops
