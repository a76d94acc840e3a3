#include "grammar/multiset_mask.h"

#include <cstring>

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int64_t kTokensPerTask = 512, kTasksPerThread = 8;  // their effects stay in the L1 cache
constexpr int kChunk = 32;                                    // letters that are compared at a time

// Whether a token whose effects begin at x fits. `readable`: bytes from x on that may be read.
inline bool fits(const int8_t* x, const int8_t* room, int letters, int64_t readable) {
#if defined(__AVX2__)
  const int chunks = (letters + kChunk - 1) / kChunk;
  if (chunks * kChunk <= readable) {
    __m256i over = _mm256_setzero_si256();
    for (int c = 0; c < chunks; ++c) {
      const __m256i e = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x) + c);
      const __m256i r = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(room) + c);
      over = _mm256_or_si256(over, _mm256_cmpgt_epi8(e, r));
    }
    return _mm256_testz_si256(over, over);
  }
#else
  (void)readable;
#endif
  bool all = true;
  for (int a = 0; a < letters; ++a) all &= x[a] <= room[a];
  return all;
}

// Tokens first..last of all rows; first is a multiple of 32.
void mask_tokens(const MultisetMask& p, int64_t first, int64_t last) {
  const int64_t width = (p.V + 31) / 32, bytes = p.V * p.A;
  int8_t room[kMostLetters];
  for (int64_t row = 0; row < p.B; ++row) {
    std::memset(room, 127, sizeof room);  // letters beyond A hold nobody up
    bool none = false;
    for (int a = 0; a < p.A; ++a) {
      const int left = room_of(p, row, a);
      none |= left < -128;
      room[a] = int8_t(left);
    }
    int32_t* out = p.out + row * width;
    for (int64_t t0 = first; t0 < last; t0 += 32) {
      const int n = last - t0 < 32 ? int(last - t0) : 32;
      uint32_t word = 0;
      for (int i = 0; i < n && !none; ++i) {
        const int64_t at = (t0 + i) * p.A;
        word |= uint32_t(fits(p.effect + at, room, p.A, bytes - at)) << i;
      }
      out[t0 / 32] = int32_t(word);
    }
  }
}

void multiset_mask_copy(const MultisetMask& p, const Queue& q) {
  q.parallel((p.V + kTokensPerTask - 1) / kTokensPerTask, kTasksPerThread,
             [&](int64_t t0, int64_t t1) {
               for (int64_t t = t0; t < t1; ++t) {
                 const int64_t last = (t + 1) * kTokensPerTask;
                 mask_tokens(p, t * kTokensPerTask, last < p.V ? last : p.V);
               }
             });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(multiset_mask, multiset_mask_copy, MultisetMask)
