// Control tokens at the first position of an answer: whether to refuse, decided by probabilities.
#pragma once
#include "common/row_law.h"

namespace tokops {

constexpr int kMostControls = 33;  // categories, and the token that answers

enum class Control : int32_t { off, largest, sum };

struct FirstTokenControl {
  const void* logits;  // [B, V], the last axis contiguous
  int64_t stride;      // of rows, in elements
  DType dtype;
  int64_t B;
  int32_t V, count;     // of ids in a row: C + 1
  const int32_t* ids;   // [B, count] the categories' tokens, then the one that answers; -1: none
  const float* tau;     // [B, count - 1] thresholds; NaN: the category is not in use
  const int32_t* mode;  // [B] a Control
  float temperature;
  int32_t* next;  // [B] the token to emit; -1: the model's own
  float* score;   // [B, count] probabilities of the ids
};

// first_token_control.isa.cpp on the CPU, .cu on CUDA.
void first_token_control(const FirstTokenControl& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// What row `row` emits, from the logits and probabilities of its ids. What is likelier is told by
// the logits: probabilities far below the largest are all 0.
TOKOPS_HD int32_t controlled_token(const FirstTokenControl& p, int64_t row, const float* logit,
                                   const float* score) {
  const int32_t* ids = p.ids + row * p.count;
  const int categories = p.count - 1;
  const float* tau = p.tau + row * categories;
  const Control mode = Control(p.mode[row]);
  if (mode != Control::largest && mode != Control::sum) return -1;
  int best = -1;
  float total = 0;
  for (int c = 0; c < categories; ++c) {
    const bool counts = ids[c] >= 0 && (mode == Control::largest || tau[c] == tau[c]);
    if (!counts) continue;
    total = exact::add(total, score[c]);
    if (best < 0 || logit[c] > logit[best]) best = c;
  }
  if (best < 0) return -1;
  const float limit = tau[best];
  if (limit != limit) return -1;
  bool refuses;
  if (limit >= 0.f)
    refuses = (mode == Control::sum ? total : score[best]) >= limit;
  else
    refuses = mode == Control::sum ? total >= score[categories] : logit[best] >= logit[categories];
  return refuses ? ids[best] : ids[categories];
}

// The probability of one token from its logit.
TOKOPS_HD float control_score(const RowLaw& r, float logit, uint64_t sum) {
  const float scale = float(exact::kOne / double(sum));
  return sum ? exact::mul(raw_weight(r, logit), scale) : 0.f;
}

}  // namespace
}  // namespace tokops
