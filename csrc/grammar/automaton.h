// Grammars as a deterministic automaton over bytes, in tables that grow as texts need them.
#pragma once
#include "common/backend.h"

namespace tokops {

// Rows of a batch that are in no state of the tables.
enum : int32_t {
  kDeadRow = -1,      // its text is not in the language: nothing is allowed
  kHostRow = -2,      // the host works its masks out
  kFinishedRow = -3,  // an end token was accepted
  kFreeRow = -4,      // no grammar: everything is allowed
  kWaitingRow = -5,   // the tables do not say where its last token leads: nothing is allowed yet
};
// Entries of `next` and of `mask_of` that are no state and no mask.
enum : int32_t { kNotAllowed = -1, kNotKnown = -2 };

// Words of a part of a mask: gm_walk says for each part whether it could tell.
constexpr int64_t kWalkWords = 32;

struct Automaton {
  const int32_t* next;       // [S, 256]
  const uint8_t* accepting;  // [S]
  int64_t S;
};

struct TokenBytes {
  const int32_t* offset;  // [V + 1] into bytes
  const uint8_t* bytes;   // [size]
  const int32_t* eos;     // [E]
  int64_t V, E, size;
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD int64_t walk_parts(int64_t words) { return (words + kWalkWords - 1) / kWalkWords; }

TOKOPS_HD bool is_state(const Automaton& a, int32_t state) { return state >= 0 && state < a.S; }

// Reads bytes [from, to) while the tables know what they do. Returns where it stops, `state` the
// one it has come to there.
TOKOPS_HD int32_t walk_bytes(const Automaton& a, const uint8_t* bytes, int32_t from, int32_t to,
                             int32_t* state) {
  for (; from < to; ++from) {
    const int32_t next = a.next[int64_t(*state) * 256 + bytes[from]];
    if (!is_state(a, next)) break;
    *state = next;
  }
  return from;
}

// Where a token leads from a state of the tables: a state, kDeadRow, kFinishedRow or kWaitingRow.
TOKOPS_HD int32_t advance_token(const Automaton& a, const TokenBytes& t, int32_t state,
                                int64_t token) {
  if (!is_state(a, state) || token < 0 || token >= t.V) return kDeadRow;
  for (int64_t e = 0; e < t.E; ++e)
    if (t.eos[e] == token) return a.accepting[state] ? kFinishedRow : kDeadRow;
  const int32_t from = t.offset[token], to = t.offset[token + 1];
  if (from < 0 || from >= to || to > t.size) return kDeadRow;
  const int32_t at = walk_bytes(a, t.bytes, from, to, &state);
  if (at == to) return state;
  return a.next[int64_t(state) * 256 + t.bytes[at]] == kNotKnown ? kWaitingRow : kDeadRow;
}

}  // namespace
}  // namespace tokops
