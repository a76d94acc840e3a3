// exp(bend(score) - lse) for .cu files: what one query head gives to a key.
#pragma once
#include "common/cuda.cuh"

namespace tokops {

// NaN counts as -inf, +inf as the largest float.
__device__ __forceinline__ float sane(float x) {
  constexpr float kLargest = 3.402823466e38f;
  return x != x ? -INFINITY : x < kLargest ? x : kLargest;
}

// Soft cap: cap * tanh(s / cap), where -inf, an unseen key, stays; 0 for none.
__device__ __forceinline__ float bend(float s, float softcap) {
  return softcap > 0.f && s != -INFINITY ? softcap * tanhf(s / softcap) : s;
}

// Scores without NaN. A difference above 88, of a wrong lse, counts as 88; a NaN lse gives nothing.
__device__ __forceinline__ float mass_of(float s, float lse, float softcap) {
  const float x = sane(bend(s, softcap) - lse);
  return expf(x < 88.f ? x : 88.f);
}

}  // namespace tokops
