// Bitmasks of budgets: a token is allowed while what it adds to every count stays within its limit.
#pragma once
#include "common/backend.h"

namespace tokops {

constexpr int kMostLetters = 256;

struct MultisetMask {
  const int8_t* effect;          // [V, A]
  const int16_t *used, *budget;  // [B, A]
  int32_t* out;                  // [B, W], W = ceil(V / 32)
  int64_t V, B;
  int32_t A;  // 1..kMostLetters
};

// multiset_mask.isa.cpp on the CPU, .cu on CUDA.
void multiset_mask(const MultisetMask& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// What letter a of a row still has, limited to what an int8 can differ from: 127 never runs out,
// and where it is -129 no token will do.
TOKOPS_HD int room_of(const MultisetMask& p, int64_t row, int a) {
  const int room = int(p.budget[row * p.A + a]) - int(p.used[row * p.A + a]);
  return room > 127 ? 127 : room < -129 ? -129 : room;
}

}  // namespace
}  // namespace tokops
