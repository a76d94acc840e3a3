#include "common/cuda.cuh"
#include "grammar/gm_advance.h"

namespace tokops {
namespace {

constexpr int kThreads = 32;  // few, so that the rows of a small batch wait for memory side by side

// One thread per row: each byte of a token needs the state that the one before it led to.
__global__ void __launch_bounds__(kThreads) gm_advance_kernel(GmAdvance p) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b < p.B) advance_row(p, b);
}

}  // namespace

void gm_advance(const GmAdvance& p, const Queue& q) {
  launch(gm_advance_kernel, dim3(unsigned((p.B + kThreads - 1) / kThreads)), dim3(kThreads), 0, q,
         p);
}

}  // namespace tokops
