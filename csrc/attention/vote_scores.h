// Softmax of every head over its scores, then the sum over all heads or the largest of each group.
#pragma once
#include "common/backend.h"

namespace tokops {

struct VoteScores {
  const float* scores;  // [rows, Hq, L] dense
  float* votes;         // [rows, groups, L]
  float* stats;  // workspace [rows * Hq, 2]: maximum (0 where a head sees nothing), 1 / sum of exp
  int64_t rows, length;
  int32_t Hq, groups;
  bool sum;  // add the heads of a group; else keep the largest
};

void vote_scores(const VoteScores& p,
                 const Queue& q);  // vote_scores.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
