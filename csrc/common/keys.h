// Floats as integers of the same order.
#pragma once
#include "common/backend.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

constexpr int32_t kKeyOfNan = INT32_MIN;
constexpr int32_t kKeyOfMinusInf = -0x7f800000;

// Order-preserving integer of a float's bits: -0 and +0 are one key, NaN is below -inf.
constexpr int32_t score_key(int32_t bits) {
  const int32_t magnitude = bits & INT32_MAX, sign = bits >> 31;
  const int32_t nan = -int32_t(magnitude > 0x7f800000);  // no branches: signs are random
  return (((magnitude ^ sign) - sign) & ~nan) | (kKeyOfNan & nan);
}

}  // namespace
}  // namespace tokops
