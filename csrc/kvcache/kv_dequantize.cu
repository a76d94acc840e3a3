#include "kvcache/kv_dequantize.h"
#include "kvcache/rows.cuh"

namespace tokops {
namespace {

// One warp per slot.
__global__ void dequantize_kernel(KvDequantize p) {
  const int64_t r = row_of_warp(), P = p.pool.P;
  if (r >= p.pool.pages * p.H * P) return;
  const float norm = p.norm ? stored_value(p.norm_dtype, p.norm, r) : 1.f;
  for (int d = threadIdx.x % 32; d < p.pool.D; d += 32)
    p.out[r * p.pool.D + d] = element_of(p.pool, r / P / p.H, r / P % p.H, r % P, d) * norm;
}

}  // namespace

void kv_dequantize(const KvDequantize& p, const Queue& q) {
  launch(dequantize_kernel, row_blocks(p.pool.pages * p.H * p.pool.P), dim3(kRowThreads), 0, q, p);
}

}  // namespace tokops
