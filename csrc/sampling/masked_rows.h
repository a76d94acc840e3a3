// Rows of logits under a mask on the CPU, for .isa.cpp files.
#pragma once
#include "common/bitmask.h"
#include "common/row_law_cpu.h"

namespace tokops {
namespace {

// Sane floats of tokens first..first + count of one row, -inf where its mask has no bit; logits
// whose whole word is 0 are not read. `bits` is null where there is no mask; first is a multiple
// of 32.
inline void load_allowed(const char* row, DType dtype, const Bitmask& mask, const int32_t* bits,
                         int first, int count, float* out) {
  const int64_t size = dtype == DType::f32 ? 4 : 2;
  if (!bits) return load_logits(row + first * size, dtype, count, out);
  for (int x = 0; x < count; x += 32) {
    const int n = x + 32 < count ? 32 : count - x;
    const uint32_t allowed = word_of(mask, bits, (first + x) / 32);
    if (allowed) load_logits(row + (first + x) * size, dtype, n, out + x);
    if (allowed == kAllAllowed) continue;
    for (int i = 0; i < n; ++i) out[x + i] = allowed >> i & 1 ? out[x + i] : -INFINITY;
  }
}

}  // namespace
}  // namespace tokops
