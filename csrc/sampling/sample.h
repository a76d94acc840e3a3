// Plain sampling: from rows of logits to tokens (sample), to laws (law), and from laws to tokens
// (draw).
#pragma once
#include "common/bitmask.h"
#include "common/random.h"
#include "common/row_law.h"

namespace tokops {

// Rows of logits and what is to be made of them.
struct LawRows {
  const void* logits;  // [rows, V], the last axis contiguous
  int64_t stride;      // of rows, in elements
  DType dtype;
  int64_t rows;
  int32_t V;
  LawSettings settings;
  const float* per_row;  // [rows, 4] temperature, top_k, top_p, min_p, or null
  Bitmask mask;          // what is not allowed counts as -inf
  float* workspace;      // CPU only: kRowFloats * V floats for each of `slots` rows at a time
  int32_t slots;
};

struct Sample {
  LawRows law;
  uint64_t seed;
  const int64_t *stream, *position;  // [rows]
  int32_t slot, use;                 // use: one of common/random.h
  int32_t* tokens;                   // [rows]; -1 where a row has no weight
};

struct LawOf {
  LawRows law;
  float* probs;  // [rows, V]; all 0 where a row has no weight
};

struct Draw {
  const float* probs;  // [rows, V], the last axis contiguous
  int64_t stride, rows;
  int32_t V, count;  // draws per row
  bool replace;
  uint64_t seed;
  const int64_t *stream, *position;  // [rows]
  int32_t use;
  int32_t* tokens;  // [rows, count]; -1 where no weight is left
};

// sample.isa.cpp on the CPU, .cu on CUDA.
void sample(const Sample& p, const Queue& q);
void law(const LawOf& p, const Queue& q);
void draw(const Draw& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD LawSettings settings_of(const LawRows& p, int64_t row) {
  if (!p.per_row) return p.settings;
  const float* x = p.per_row + 4 * row;
  return {x[0], x[2], x[3], int32_t(x[1])};
}

// What weights in units of 2^-40 are multiplied by to be a law.
TOKOPS_HD float scale_of(uint64_t sum) { return float(exact::kOne / double(sum)); }

}  // namespace
}  // namespace tokops
