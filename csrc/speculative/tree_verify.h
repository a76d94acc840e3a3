// Verification of token trees: a walk from the root that accepts at most one child per level and
// decides one more token.
#pragma once
#include "common/random.h"
#include "common/row_law.h"

namespace tokops {

enum class Verify : int32_t {
  greedy,
  target_only,
  rrs,
  rrs_wo,
  greedy_plus_one,
  kseq,
  chain_block,
  typical,
  lantern,
  count
};

// What is left of the target after a rejection in mode lantern.
enum class Residual : int32_t { moved, plain, compat };

// Why a request could not be verified. `what` is one of Fault, `node` where.
enum class Fault : int32_t { none, empty_target, target_mass, draft_mass, zero_draft, low_rho };

struct TreeVerify {
  Verify mode;
  int32_t B, N, M, V, columns;  // columns of the outputs: the largest depth and 1
  const int32_t *tokens, *parents, *first_child, *next_sibling;  // [B, N]
  const int32_t* n_nodes;                                        // [B] or null
  const void* logits;                                            // [B, N, V] or null; V contiguous
  const float* probs;                                            // [B, N, V] where logits is null
  DType dtype;
  int64_t target_b, target_n;  // strides in elements
  LawSettings settings;
  const float* draft;         // [B, M, V] or null
  int64_t draft_b, draft_m;   // strides in elements
  const int32_t* draft_rows;  // [B, N]
  uint64_t seed;
  const int64_t *stream, *position;  // [B]
  bool match_plain;
  double eps, delta;
  const double* rho;          // [B, N] or null
  const int32_t* neighbours;  // [codes, reach] or null
  int32_t codes, reach, offset;
  Residual residual;
  int32_t *accept_len, *accept_node, *out_tokens;  // [B], [B, columns], [B, columns]
  int32_t* faults;                                 // [B, 2]: what, node
  float* left;         // [B, V] in modes that keep a residual, else null
  uint8_t* marks;      // [B, V] of 0 in modes that need them: tokens that have left the draft's law
  double* score;       // [B, N] in mode typical
  int32_t* rows_read;  // [B]: rows of the target that were looked at
  float* workspace;    // CPU only: kRowFloats * V floats for each of `slots` requests at a time
  int32_t slots;
};

void tree_verify(const TreeVerify& p,
                 const Queue& q);  // tree_verify.isa.cpp on the CPU, .cu on CUDA

constexpr bool keeps_residual(Verify mode) {
  return mode == Verify::rrs || mode == Verify::rrs_wo || mode == Verify::lantern;
}
constexpr bool keeps_marks(Verify mode) {
  return mode == Verify::rrs_wo || mode == Verify::greedy_plus_one || mode == Verify::lantern;
}

}  // namespace tokops
