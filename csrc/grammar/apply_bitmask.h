// Masks on logits, in place: forbidden tokens get a value, or are moved by one.
#pragma once
#include "common/bitmask.h"

namespace tokops {

struct ApplyBitmask {
  void* logits;    // [B, V], the last axis contiguous
  int64_t stride;  // of rows, in elements
  DType dtype;
  int64_t B, V;
  Bitmask mask;      // row i is for row rows[i] of the logits
  const void* rows;  // [count] int32 or int64, or null: row i itself
  bool wide;         // rows are int64
  int64_t count;
  float value;
  bool add;  // value is added to what is forbidden; else it takes its place
};

// apply_bitmask.isa.cpp on the CPU, .cu on CUDA. Rows outside the logits are skipped.
void apply_bitmask(const ApplyBitmask& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// The row of the logits that row i of the mask is for, or -1.
TOKOPS_HD int64_t masked_row(const ApplyBitmask& p, int64_t i) {
  int64_t row = i;
  if (p.rows)
    row = p.wide ? static_cast<const int64_t*>(p.rows)[i] : static_cast<const int32_t*>(p.rows)[i];
  return row >= 0 && row < p.B ? row : -1;
}

}  // namespace
}  // namespace tokops
