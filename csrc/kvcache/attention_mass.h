// How much attention every cached token received: sum of exp(score - lse) over rows and the heads
// of a group.
#pragma once
#include "common/backend.h"

namespace tokops {

struct AttentionMass {
  const float* scores;  // [B, T, Hq, L], the last axis dense
  int64_t s_b, s_t, s_h;
  const float* lse;       // [B, T, Hq] dense
  const int32_t* q_lens;  // [B], or null: all T rows exist
  float* mass;            // [B, Hkv, L] dense
  int64_t B, T, L;
  int32_t Hq, Hkv;
  float softcap;  // 0: none
};

void attention_mass(const AttentionMass& p,
                    const Queue& q);  // attention_mass.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
