#include "grammar/first_token_control.h"

#include "common/isa.h"
#include "common/row_law_cpu.h"

namespace tokops {
namespace {

constexpr int kBlock = 1024;  // tokens that are worked on at a time

void control_row(const FirstTokenControl& p, int64_t row) {
  const int64_t size = p.dtype == DType::f32 ? 4 : 2;
  const char* from = static_cast<const char*>(p.logits) + row * p.stride * size;
  float block[kBlock];
  RowLaw r;
  r.top = -INFINITY;
  r.inverse = 1.f / p.temperature;
  const auto each_block = [&](const auto& f) {
    for (int x = 0; x < p.V; x += kBlock) {
      const int n = x + kBlock < p.V ? kBlock : p.V - x;
      load_logits(from + x * size, p.dtype, n, block);
      f(n);
    }
  };
  each_block([&](int n) {
    const float top = largest_of(block, n);
    r.top = top > r.top ? top : r.top;
  });
  uint64_t sum = 0;
  if (r.top > -INFINITY)
    each_block([&](int n) {
      for (int i = 0; i < n; ++i) block[i] = raw_weight(r, block[i]);
      sum += sum_fixed(block, n);
    });
  float* score = p.score + row * p.count;
  float logit[kMostControls];
  for (int c = 0; c < p.count; ++c) {
    const int32_t id = p.ids[row * p.count + c];
    score[c] = 0;
    logit[c] = -INFINITY;
    if (id < 0 || id >= p.V) continue;
    load_logits(from + id * size, p.dtype, 1, logit + c);
    score[c] = control_score(r, logit[c], sum);
  }
  p.next[row] = controlled_token(p, row, logit, score);
}

void first_token_control_copy(const FirstTokenControl& p, const Queue& q) {
  q.parallel(p.B, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t row = b0; row < b1; ++row) control_row(p, row);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(first_token_control, first_token_control_copy, FirstTokenControl)
