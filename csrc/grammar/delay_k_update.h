// Stopping by flagged tokens: scores above a threshold are counted, and a row stops at the k-th.
#pragma once
#include "common/backend.h"

namespace tokops {

struct DelayKUpdate {
  int32_t* count;       // [B] flagged tokens so far
  const float* scores;  // [B, n]
  const bool* valid;    // [B, n], or null: all are
  int64_t B, n;
  float theta;
  int64_t k;
  bool* stop;      // [B]
  int32_t* first;  // [B] column of the k-th flagged token if it is among these, else -1
};

// delay_k_update.isa.cpp on the CPU, .cu on CUDA.
void delay_k_update(const DelayKUpdate& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD bool is_flagged(const DelayKUpdate& p, int64_t at) {
  return (!p.valid || p.valid[at]) && p.scores[at] >= p.theta;
}

// Counts do not wrap.
TOKOPS_HD int32_t counted(int32_t before, int64_t more) {
  const int64_t sum = before + more;
  return sum > INT32_MAX ? INT32_MAX : int32_t(sum);
}

}  // namespace
}  // namespace tokops
