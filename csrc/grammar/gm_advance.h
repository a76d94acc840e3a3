// Tokens on rows of grammars' states: every row goes where its token leads.
#pragma once
#include "grammar/automaton.h"

namespace tokops {

struct GmAdvance {
  int32_t* state;      // [B] a state of the tables, or one of the rows that have none
  const void* tokens;  // [B] int32 or int64; below 0: the row stays as it is
  bool wide;           // tokens are int64
  Automaton tables;
  TokenBytes text;
  int32_t* missed;    // [B, 2] (state before, token) of rows that wait
  int32_t* history;   // [H, B] states before the last H tokens
  int32_t* position;  // [B] tokens so far; the state before token i is in history[i % H]
  int64_t B, H;
};

// gm_advance.isa.cpp on the CPU, .cu on CUDA.
void gm_advance(const GmAdvance& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD void advance_row(const GmAdvance& p, int64_t b) {
  const int64_t token =
      p.wide ? static_cast<const int64_t*>(p.tokens)[b] : static_cast<const int32_t*>(p.tokens)[b];
  const int32_t state = p.state[b];
  if (token < 0 || state == kFreeRow) return;
  const int32_t at = p.position[b];
  if (at >= 0) p.history[at % p.H * p.B + b] = state;
  p.position[b] = int32_t(uint32_t(at) + 1);
  int32_t next = kDeadRow;
  if (state == kFinishedRow)
    next = kFinishedRow;
  else if (state == kHostRow)
    next = kWaitingRow;
  else if (state >= 0)
    next = advance_token(p.tables, p.text, state, token);
  if (next == kWaitingRow) {
    p.missed[2 * b] = state;
    p.missed[2 * b + 1] = token < INT32_MAX ? int32_t(token) : INT32_MAX;
  }
  p.state[b] = next;
}

}  // namespace
}  // namespace tokops
