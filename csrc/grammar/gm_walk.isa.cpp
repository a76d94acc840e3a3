#include "grammar/gm_walk.h"

#include "common/isa.h"

namespace tokops {
namespace {

void walk_part(const GmWalk& p, int64_t b, int64_t part) {
  const int64_t first = part * kWalkWords;
  const int64_t last = first + kWalkWords < p.W ? first + kWalkWords : p.W;
  bool known = true;
  for (int64_t w = first; w < last; ++w) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) {
      const Walked walked = walk_token(p, b, w * 32 + i);
      known &= walked.known;
      bits |= uint32_t(walked.allowed) << i;
    }
    p.out[b * p.W + w] = int32_t(bits);
  }
  p.left[b * p.parts + part] = !known;
}

void gm_walk_copy(const GmWalk& p, const Queue& q) {
  for (int64_t b = 0; b < p.B; ++b)
    if (has_no_mask(p, b))
      q.parallel(p.parts, 16, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) walk_part(p, b, part);
      });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(gm_walk, gm_walk_copy, GmWalk)
