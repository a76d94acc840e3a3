#include "kvcache/kv_dequantize.h"

#include "common/isa.h"
#include "kvcache/rows.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 16 << 10;

void kv_dequantize_copy(const KvDequantize& p, const Queue& q) {
  const int64_t P = p.pool.P, H = p.H, D = p.pool.D;
  q.parallel(p.pool.pages * H * P, kElementsPerTask / D + 1, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      float* x = p.out + r * D;
      dequantise_row(p.pool, r / P / H, r / P % H, r % P, x);
      if (!p.norm) continue;
      const float norm = stored_value(p.norm_dtype, p.norm, r);
      for (int d = 0; d < D; ++d) x[d] *= norm;
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_dequantize, kv_dequantize_copy, KvDequantize)
