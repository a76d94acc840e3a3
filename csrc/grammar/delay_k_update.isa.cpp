#include "grammar/delay_k_update.h"

#include "common/isa.h"

namespace tokops {
namespace {

void delay_k_update_copy(const DelayKUpdate& p, const Queue& q) {
  q.parallel(p.B, 1024, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      int64_t more = 0;
      p.first[b] = -1;
      for (int64_t i = 0; i < p.n; ++i) {
        if (!is_flagged(p, b * p.n + i)) continue;
        ++more;
        if (p.count[b] + more == p.k) p.first[b] = int32_t(i);
      }
      p.count[b] = counted(p.count[b], more);
      p.stop[b] = p.count[b] >= p.k;
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(delay_k_update, delay_k_update_copy, DelayKUpdate)
