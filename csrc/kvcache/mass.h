// exp(bend(score) - lse) for .isa.cpp files: what one query head gives to a key.
#pragma once
#include "common/simd.h"

namespace tokops {
namespace {

// Soft cap: cap * tanh(s / cap), where -inf, an unseen key, stays.
inline Vec bend(Vec s, float softcap) {
  const Vec cap = splat(softcap), one = splat(1), none = zero();
  const Vec x = s * splat(1 / softcap);
  const Vec e = exp_nonpositive(splat(-2) * max(x, none - x));
  const Vec bent = cap * (one - e) / (one + e);
  return select_less(s, splat(-3.402823466e38f), s, select_less(x, none, none - bent, bent));
}

// Scores without NaN, softcap 0 for none. A difference above 88, of a wrong lse, counts as 88; a
// NaN lse gives nothing.
inline Vec mass_of(Vec s, Vec lse, float softcap) {
  const Vec x = softcap > 0 ? bend(s, softcap) : s;
  return exp_nonpositive(min(sane(x - lse), splat(88)));
}

}  // namespace
}  // namespace tokops
