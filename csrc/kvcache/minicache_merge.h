// One shared direction and two magnitudes for pairs of vectors of two layers.
#pragma once
#include "common/backend.h"

namespace tokops {

struct MinicacheMerge {
  const void *prev, *cur;         // [n0, n1, n2, D], the last axis dense
  int64_t prev_at[3], cur_at[3];  // their strides
  void* e;                        // [rows, D] dense
  void *norm_prev, *norm_cur;     // [rows] float16
  float* distance;                // [rows]
  int64_t rows, n1, n2, D;        // rows = n0 n1 n2
  float t, eps, cos_limit;        // cos_limit = 1 - eps
  DType dtype;
};

// Where row i of a strided [n0, n1, n2, D] begins.
template <class P>
constexpr int64_t row_offset(const P& p, const int64_t (&at)[3], int64_t i) {
  return i / (p.n1 * p.n2) * at[0] + i / p.n2 % p.n1 * at[1] + i % p.n2 * at[2];
}

// Below this sine vectors are so near that they are mixed along the chord.
constexpr float kChordSine = 1e-4f;
// A mix that is no longer than this is rounding: the vectors are opposite, and none is between.
constexpr float kNoMix = 1e-3f;
constexpr float kLargestHalf = 65504.f;

void minicache_merge(const MinicacheMerge& p,
                     const Queue& q);  // minicache_merge.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
