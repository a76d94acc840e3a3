// Masks of states whose masks are not in the pool yet, by walking every token through the tables.
#pragma once
#include "grammar/automaton.h"

namespace tokops {

struct GmWalk {
  const int32_t* state;    // [B]
  const int32_t* mask_of;  // [S]; rows of states with one below 0 are walked
  Automaton tables;
  TokenBytes text;
  int32_t* out;   // [B, W]
  int32_t* left;  // [B, parts] 1 where a token of the part meets an entry that is not known
  int64_t B, W, parts;
};

// gm_walk.isa.cpp on the CPU, .cu on CUDA.
void gm_walk(const GmWalk& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD bool has_no_mask(const GmWalk& p, int64_t b) {
  const int32_t state = p.state[b];
  return is_state(p.tables, state) && p.mask_of[state] < 0;
}

struct Walked {
  bool allowed, known;
};
TOKOPS_HD Walked walk_token(const GmWalk& p, int64_t b, int64_t token) {
  const int32_t to = advance_token(p.tables, p.text, p.state[b], token);
  return {to >= 0 || to == kFinishedRow, to != kWaitingRow};
}

}  // namespace
}  // namespace tokops
