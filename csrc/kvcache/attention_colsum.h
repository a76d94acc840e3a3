// Column sums of causal attention weights, without the T x L matrix: how much attention every key
// of a prompt received.
#pragma once
#include "common/backend.h"

namespace tokops {

// The rows that count, first_row <= t < T, are folded with the G heads of a group: folded row r is
// row first_row + r / G, head r % G of the group.
struct AttentionColsum {
  const void* q;  // [B, T, Hq, D]
  int64_t q_b, q_t, q_h;
  const void* k;  // [B, L, Hkv, D]; row t sits at position L - T + t
  int64_t k_b, k_l, k_h;
  const int32_t* starts;  // [B] first visible key, or null
  float* lse;             // [B, T, Hq] dense; written first where find_lse
  float* acc;             // [B, Hkv, L] dense
  int32_t B, T, L, Hq, Hkv, D, first_row;
  float scale, softcap;  // softcap 0: none
  DType dtype;
  bool find_lse, aligned;  // aligned: every row of q and k begins at a multiple of 16 bytes
};

void attention_colsum(const AttentionColsum& p,
                      const Queue& q);  // attention_colsum.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
