// Masks of rows of grammars' states, out of a pool of masks and rows that the host has written.
#pragma once
#include "grammar/automaton.h"

namespace tokops {

struct GmCompose {
  const int32_t* state;      // [B]
  const int32_t* mask_of;    // [S] into the pool; below 0: not known
  const int32_t* pool;       // [R, W]
  const int32_t* host_mask;  // [B, W] of host rows, and of rows that gm_walk has walked
  const int32_t* eos_mask;   // [W] of finished rows
  const int32_t* left;       // [B, parts] what gm_walk could not tell, or null: it has not run
  int32_t* out;              // [B, W]
  int64_t B, S, R, W, parts;
};

// gm_compose.isa.cpp on the CPU, .cu on CUDA.
void gm_compose(const GmCompose& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// Whether a row's mask is what gm_walk says; then no entry of its `left` may be set.
TOKOPS_HD bool is_walked(const GmCompose& p, int64_t b) {
  const int32_t state = p.state[b];
  return p.left && state >= 0 && state < p.S && p.mask_of[state] < 0;
}

// The words of a row's mask, or null where all are `fill`. `walked`: is_walked, and nothing is
// left.
TOKOPS_HD const int32_t* mask_source(const GmCompose& p, int64_t b, bool walked, int32_t* fill) {
  const int32_t state = p.state[b];
  *fill = state == kFreeRow ? -1 : 0;
  if (state == kHostRow || walked) return p.host_mask + b * p.W;
  if (state == kFinishedRow) return p.eos_mask;
  if (state < 0 || state >= p.S) return nullptr;
  const int32_t mask = p.mask_of[state];
  return mask >= 0 && mask < p.R ? p.pool + mask * p.W : nullptr;
}

}  // namespace
}  // namespace tokops
