#include "common/cuda.cuh"
#include "kvcache/dimwise_quantize.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads >= kMostLevels);
constexpr int64_t kPerThread = 8, kMostBlocks = 2048;

// Every block finds the cuts between the levels, one a thread, then searches them for its elements.
template <class T>
__global__ void dimwise_quantize_kernel(DimwiseQuantize p) {
  __shared__ float cuts[kMostLevels];
  __shared__ T values[kMostLevels];
  const int i = int(threadIdx.x);
  if (i < kMostLevels)
    cuts[i] = i + 1 < p.count ? dimwise_cut(p.scale, p.levels[i], p.levels[i + 1]) : INFINITY;
  if (i < p.count) values[i] = from_float<T>(dimwise_value(p.scale, p.levels[i]));
  __syncthreads();
  int depth = 2;
  while (depth < p.count) depth *= 2;
  const T* x = static_cast<const T*>(p.x);
  for (int64_t j = int64_t(blockIdx.x) * kThreads + i; j < p.n;
       j += int64_t(gridDim.x) * kThreads) {
    const float v = to_float(x[j]);
    int at = 0;
    for (int half = depth / 2; half > 0; half /= 2) at += v > cuts[at + half - 1] ? half : 0;
    p.codes[j] = uint8_t(at);
    static_cast<T*>(p.values)[j] = values[at];
  }
}

}  // namespace

void dimwise_quantize(const DimwiseQuantize& p, const Queue& q) {
  const int64_t wanted = (p.n + kThreads * kPerThread - 1) / (kThreads * kPerThread);
  const int64_t blocks = wanted < kMostBlocks ? wanted : kMostBlocks;
  dispatch<float, __nv_bfloat16, __half>(p.dtype, "dimwise_quantize", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(dimwise_quantize_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), 0, q, p);
  });
}

}  // namespace tokops
