// Masks of rows of grammars' states, out of a pool of masks and rows that the host has written.
#pragma once
#include "grammar/automaton.h"

namespace tokops {

struct GmCompose {
  const int32_t* state;      // [B]
  const int32_t* mask_of;    // [S] into the pool; below 0: not known, nothing is allowed
  const int32_t* pool;       // [R, W]
  const int32_t* host_mask;  // [B, W] of host rows
  const int32_t* eos_mask;   // [W] of finished rows
  int32_t* out;              // [B, W]
  int64_t B, S, R, W;
};

// gm_compose.isa.cpp on the CPU, .cu on CUDA.
void gm_compose(const GmCompose& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// The words of a row's mask, or null where all are `fill`.
TOKOPS_HD const int32_t* mask_source(const GmCompose& p, int64_t b, int32_t* fill) {
  const int32_t state = p.state[b];
  *fill = state == kFreeRow ? -1 : 0;
  if (state == kHostRow) return p.host_mask + b * p.W;
  if (state == kFinishedRow) return p.eos_mask;
  if (state < 0 || state >= p.S) return nullptr;
  const int32_t mask = p.mask_of[state];
  return mask >= 0 && mask < p.R ? p.pool + mask * p.W : nullptr;
}

}  // namespace
}  // namespace tokops
