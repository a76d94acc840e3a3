// The scale of dimension-wise codes: values in [lo, hi] are mapped to u in [-r, r], where the
// levels stand.
#pragma once
#include <cmath>
#include <cstring>

#include "common/backend.h"
#if defined(TOKOPS_CUDA_SIM_KERNEL)
#include <cuda_runtime.h>  // __host__ and __device__, which g++ lacks
#endif

namespace tokops {

constexpr int kMostLevels = 256;

struct DimwiseScale {
  float lo, span, r;  // span = hi - lo
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

// A product that no compiler fuses with the sum it goes into: ptxas keeps the rounding of __fmul_rn
// alone, and for g++, which has no such word, it is a `volatile` that nvcc does not heed.
TOKOPS_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  volatile float product = a * b;
  return product;
#endif
}

// u = clip((x - lo) / span * 2r - r, -r, r), every operation rounded to float32. Codes are those of
// this number, so it must be the same under every compiler.
TOKOPS_HD float dimwise_u(const DimwiseScale& s, float x) {
  const float u = rounded_product((x - s.lo) / s.span, 2 * s.r) - s.r;
  return u < -s.r ? -s.r : u > s.r ? s.r : u;
}

// Whole numbers in the order of the floats.
TOKOPS_HD int64_t order_of(float x) {
  int32_t i;
  std::memcpy(&i, &x, 4);
  return i >= 0 ? int64_t(i) : -int64_t(i & 0x7fffffff);
}
TOKOPS_HD float in_order(int64_t k) {
  const uint32_t i = k >= 0 ? uint32_t(k) : 0x80000000u | uint32_t(-k);
  float x;
  std::memcpy(&x, &i, 4);
  return x;
}

// The largest x that is not nearer to level `high` than to its lower neighbour `low`. u never falls
// as x grows, so that comparing x with these cuts is comparing distances in u, ties to the lower.
TOKOPS_HD float dimwise_cut(const DimwiseScale& s, float low, float high) {
  constexpr float kLargest = 3.402823466e38f;
  const double middle = (double(low) + double(high)) / 2;
  const auto below = [&](float x) { return double(dimwise_u(s, x)) <= middle; };
  const double guess = s.lo + (middle + s.r) / (2 * double(s.r)) * s.span;
  const double around = (std::fabs(double(s.lo)) + s.span) / (1 << 20);
  float from = float(guess - around), to = float(guess + around);
  if (!below(from) || below(to)) from = -kLargest, to = kLargest;
  int64_t a = order_of(from), b = order_of(to);
  while (b - a > 1) {
    const int64_t c = a + (b - a) / 2;
    if (below(in_order(c)))
      a = c;
    else
      b = c;
  }
  return in_order(a);
}

// A level as a value.
TOKOPS_HD float dimwise_value(const DimwiseScale& s, float level) {
  return float((double(level) + s.r) / (2 * double(s.r)) * s.span + s.lo);
}

}  // namespace
}  // namespace tokops
