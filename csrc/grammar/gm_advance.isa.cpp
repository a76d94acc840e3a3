#include "grammar/gm_advance.h"

#include "common/isa.h"

namespace tokops {
namespace {

void gm_advance_copy(const GmAdvance& p, const Queue& q) {
  q.parallel(p.B, 512, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) advance_row(p, b);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(gm_advance, gm_advance_copy, GmAdvance)
