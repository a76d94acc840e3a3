// A row of logits seen as the law that tokens are drawn from: temperature, then top-k, top-p and
// min-p, each on what the one before it left. Weights are relative to the largest, which is 1.
#pragma once
#include "common/exact.h"
#include "common/keys.h"

namespace tokops {

constexpr int32_t kMostVocabulary = 1 << 22;
constexpr int64_t kRowFloats = 3;  // of workspace, per token of a row that is weighed on the CPU

// How logits become a law. Off: 1, 0, 1, 0. A temperature of 0 leaves the first largest logit
// alone.
struct LawSettings {
  float temperature, top_p, min_p;
  int32_t top_k;
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

struct RowLaw {
  float top = 0;                         // the largest logit
  float inverse = 1;                     // 1 / temperature
  float least = 0;                       // smaller weights are none
  int32_t cut_key = kKeyOfMinusInf + 1;  // tokens of smaller keys are out,
  int32_t last = INT32_MAX;              // and those of this key that come after this one
};

// NaN counts as -inf, +inf as the largest float.
TOKOPS_HD float sane_logit(float x) {
  constexpr float kLargest = 3.402823466e38f;
  return x != x ? -INFINITY : x < kLargest ? x : kLargest;
}

TOKOPS_HD bool inside(const RowLaw& r, int32_t key, int x) {
  return (key > r.cut_key) | ((key == r.cut_key) & (x <= r.last));
}

// Weight of a token inside the cut, `least` apart.
TOKOPS_HD float raw_weight(const RowLaw& r, float logit) {
  return exact::exp_nonpositive(exact::mul(exact::sub(logit, r.top), r.inverse));
}

// Weight of token x, whose logit is sane.
TOKOPS_HD float weight(const RowLaw& r, float logit, int x) {
  const float w = raw_weight(r, logit);
  const bool heavy = w >= r.least;
  if (r.cut_key == kKeyOfMinusInf + 1) return heavy ? w : 0.f;  // -inf weighs nothing by itself
  return inside(r, score_key(exact::bits_of(logit)), x) & heavy ? w : 0.f;
}

// Where a cut falls: the key at which a running sum, from the largest key down, reaches its limit,
// and how many tokens of that key are needed for it.
struct Crossing {
  bool found;
  int32_t key;
  uint64_t ties;
};

// Digits by which keys are searched, from the top: 11, 11 and 10 bits.
constexpr int kDigitBits = 11, kDigitBins = 1 << kDigitBits;
constexpr int digit_shift(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }

// Keys as unsigned integers, so that digits order them.
TOKOPS_HD uint32_t ordered_key(int32_t key) { return uint32_t(key) ^ 0x80000000u; }
TOKOPS_HD int32_t key_of_ordered(uint32_t u) { return int32_t(u ^ 0x80000000u); }

// Mass that top-p asks for, out of `total`.
TOKOPS_HD uint64_t nucleus(float top_p, uint64_t total) {
  const double wanted = exact::mul(double(top_p), double(total));
  const uint64_t whole = uint64_t(wanted);
  const uint64_t rounded = whole + (double(whole) < wanted ? 1 : 0);
  return rounded < 1 ? 1 : rounded > total ? total : rounded;
}

}  // namespace
}  // namespace tokops
