// Attention over disjoint sets of keys, merged: the mean of the results weighted by exp(lse).
#pragma once
#include "common/backend.h"

namespace tokops {

constexpr int kMostParts = 64;

struct MergeStates {
  const void* outs[kMostParts];   // [rows, D] dense each
  const float* lses[kMostParts];  // [rows]
  int32_t parts;
  void* out;   // [rows, D]
  float* lse;  // [rows]
  int64_t rows, D;
  DType dtype;
};

void merge_states(const MergeStates& p,
                  const Queue& q);  // merge_states.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
