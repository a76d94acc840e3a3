#include "grammar/gm_compose.h"

#include <cstring>

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kWordsPerThread = 1 << 15;

void gm_compose_copy(const GmCompose& p, const Queue& q) {
  const int64_t rows = kWordsPerThread / p.W;
  q.parallel(p.B, rows > 1 ? rows : 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      bool walked = is_walked(p, b);
      for (int64_t i = 0; walked && i < p.parts; ++i) walked = !p.left[b * p.parts + i];
      int32_t fill;
      const int32_t* const from = mask_source(p, b, walked, &fill);
      int32_t* const out = p.out + b * p.W;
      if (from)
        std::memcpy(out, from, size_t(p.W) * 4);
      else
        std::memset(out, fill, size_t(p.W) * 4);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(gm_compose, gm_compose_copy, GmCompose)
