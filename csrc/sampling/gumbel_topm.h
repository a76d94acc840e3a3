// A race of tokens: the first m to arrive, in order. That is drawing without replacement.
#pragma once
#include "common/bitmask.h"
#include "common/random.h"
#include "common/row_law.h"

namespace tokops {

constexpr int32_t kMostDrawn = 64;
constexpr int32_t kRoundBits = 12;  // of the slot; the others name four tokens

struct GumbelTopm {
  const void* logits;  // [rows, V], the last axis contiguous
  int64_t stride;      // of rows, in elements
  DType dtype;
  int64_t rows;
  int32_t V, m;
  Bitmask mask;            // what is not allowed counts as -inf
  const int32_t* exclude;  // [rows, excluded] tokens that are not drawn, -1: none
  int32_t excluded;
  uint64_t seed;
  const int64_t *stream, *position;  // [rows]
  int32_t round;
  int32_t* ids;  // [rows, m]; -1 where no token is left
  float* logp;   // [rows, m]; of the law under the mask, -inf where no token is left
  float* logz;   // [rows]; -inf for an empty row
};

// gumbel_topm.isa.cpp on the CPU, .cu on CUDA.
void gumbel_topm(const GumbelTopm& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// The random words of tokens 4 group .. 4 group + 3.
TOKOPS_HD Words race_words(const GumbelTopm& p, int64_t row, int group) {
  const uint32_t slot = uint32_t(p.round) << (32 - kRoundBits) | uint32_t(group);
  return philox({{uint32_t(p.position[row]), uint32_t(p.stream[row]), slot, uint32_t(Use::race)}},
                p.seed);
}

TOKOPS_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__) || defined(TOKOPS_CUDA_SIM_KERNEL)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// ln of an exponential time: -ln(1 - v) for v = (word + 1/2) / 2^32. What arrives early has a small
// v, of which nothing is rounded away.
TOKOPS_HD float log_time(uint32_t word) {
  constexpr float kLargest = 1.f - 5.96046448e-8f;  // 1 - 2^-24
  const float high = exact::mul(float(int32_t(word >> 16)), 65536.f);
  const float number = exact::add(high, float(int32_t(word & 0xffff)));
  const float v = exact::mul(exact::add(number, 0.5f), 2.3283064365386963e-10f);
  const float w = v < kLargest ? v : kLargest;
  const float u = exact::sub(1.f, w), missing = exact::sub(1.f, u);
  // ln u over 1 - u hardly depends on how u was rounded. No branches, so that loops become vectors.
  const float ratio = quotient(w, missing > 0.f ? missing : 1.f);
  const float time = exact::mul(-exact::log_positive(u), ratio);
  return exact::log_positive(missing > 0.f ? time : w);
}

// Keys order arrivals, the largest first; -inf never arrives.
TOKOPS_HD float race_key(float logit, uint32_t word) { return exact::sub(logit, log_time(word)); }

// From the largest logit and the sum of weights in units of 2^-40.
TOKOPS_HD float logz_of(float top, uint64_t sum) {
  if (sum == 0) return -INFINITY;
  return exact::add(top, exact::log_positive(float(exact::mul(double(sum), exact::kUnit))));
}

}  // namespace
}  // namespace tokops
