// Arithmetic that has the same bits on every backend: each operation rounds by itself, and exp is
// made of them. Sums are integers, so that no order of adding shows.
#pragma once
#include <cmath>
#include <cstring>

#include "common/backend.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols
namespace exact {

// nvcc fuses what it can; g++ is told not to by -ffp-contract=off.
#if defined(__CUDA_ARCH__) || defined(TOKOPS_CUDA_SIM_KERNEL)
TOKOPS_HD float mul(float a, float b) { return __fmul_rn(a, b); }
TOKOPS_HD float add(float a, float b) { return __fadd_rn(a, b); }
TOKOPS_HD float sub(float a, float b) { return __fadd_rn(a, -b); }
TOKOPS_HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TOKOPS_HD double mul(double a, double b) { return __dmul_rn(a, b); }
TOKOPS_HD double add(double a, double b) { return __dadd_rn(a, b); }
TOKOPS_HD double sub(double a, double b) { return __dadd_rn(a, -b); }
#else
TOKOPS_HD float mul(float a, float b) { return a * b; }
TOKOPS_HD float add(float a, float b) { return a + b; }
TOKOPS_HD float sub(float a, float b) { return a - b; }
TOKOPS_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TOKOPS_HD double mul(double a, double b) { return a * b; }
TOKOPS_HD double add(double a, double b) { return a + b; }
TOKOPS_HD double sub(double a, double b) { return a - b; }
#endif

TOKOPS_HD int32_t bits_of(float x) {
  int32_t i;
  memcpy(&i, &x, sizeof i);
  return i;
}
TOKOPS_HD float float_of(int32_t i) {
  float x;
  memcpy(&x, &i, sizeof x);
  return x;
}

// The lower half of a fixed-point weight is 2^-40.
constexpr double kOne = 1099511627776.0;  // 2^40
constexpr double kUnit = 1.0 / kOne;

// e^z for z <= 0, to 2 ulp; 0 below the exponent at which a weight has no bit left.
TOKOPS_HD float exp_nonpositive(float z) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLeast = -28.5f;
  const float x = z < kLeast ? kLeast : z;
  const float n = sub(fma(x, kLog2e, kRound), kRound);
  const float r = fma(n, -kLn2Low, fma(n, -kLn2High, x));
  float y = 1.f / 5040;
  y = fma(y, r, 1.f / 720);
  y = fma(y, r, 1.f / 120);
  y = fma(y, r, 1.f / 24);
  y = fma(y, r, 1.f / 6);
  y = fma(y, r, 0.5f);
  y = fma(y, r, 1.f);
  y = fma(y, r, 1.f);
  const float scaled = float_of(bits_of(y) + (int32_t(n) << 23));
  return z < kLeast ? 0.f : scaled;
}

// ln x for positive normal x, to about 2 ulp of max(1, |ln x|).
TOKOPS_HD float log_positive(float x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const int32_t bits = bits_of(x) - 0x3f3504f3;  // mantissa from sqrt(1/2) on
  const int32_t e = bits >> 23;
  const float f = sub(float_of((bits & 0x7fffff) + 0x3f3504f3), 1.f);
  float y = 7.0376836292e-2f;
  y = fma(y, f, -1.1514610310e-1f);
  y = fma(y, f, 1.1676998740e-1f);
  y = fma(y, f, -1.2420140846e-1f);
  y = fma(y, f, 1.4249322787e-1f);
  y = fma(y, f, -1.6668057665e-1f);
  y = fma(y, f, 2.0000714765e-1f);
  y = fma(y, f, -2.4999993993e-1f);
  y = fma(y, f, 3.3333331174e-1f);
  const float f2 = mul(f, f);
  y = mul(mul(y, f), f2);
  y = fma(float(e), kLn2Low, y);
  y = fma(f2, -0.5f, y);
  return fma(float(e), kLn2High, add(f, y));
}

// A weight as a count of 2^-40, cut; nothing for what is no weight.
TOKOPS_HD uint64_t fixed(float w) {
  constexpr float kLargest = 2048.f;  // its integer is exact in a double
  const float low = w > 0.f ? w : 0.f;
  return uint64_t(int64_t(exact::mul(low < kLargest ? low : kLargest, float(kOne))));
}

}  // namespace exact
}  // namespace
}  // namespace tokops
