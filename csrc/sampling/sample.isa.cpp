#include "sampling/sample.h"

#include "common/isa.h"
#include "sampling/masked_rows.h"

namespace tokops {
namespace {

const char* row_of(const LawRows& p, int64_t row) {
  return static_cast<const char*>(p.logits) + row * p.stride * (p.dtype == DType::f32 ? 4 : 2);
}

// Calls f(row, weights, their sum) for every row, on the threads' own workspaces.
template <class F>
void each_law(const LawRows& p, const Queue& q, const F& f) {
  const int64_t per = (p.rows + p.slots - 1) / p.slots;
  q.parallel(p.slots, 1, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s) {
      const RowSpace space(p.workspace + s * kRowFloats * p.V, p.V);
      for (int64_t row = s * per; row < (s + 1) * per && row < p.rows; ++row) {
        load_allowed(row_of(p, row), p.dtype, p.mask, bits_of_row(p.mask, row), 0, p.V, space.row);
        f(row, space.row, weigh_row(space, p.V, settings_of(p, row)));
      }
    }
  });
}

void sample_copy(const Sample& p, const Queue& q) {
  each_law(p.law, q, [&](int64_t row, const float* w, uint64_t) {
    BlockSums sums;
    const auto f = [&](int x) { return w[x]; };
    const uint64_t all = sums.fill(p.law.V, f);
    const Stream random{p.seed, uint32_t(p.stream[row])};
    const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(p.slot), Use(p.use));
    p.tokens[row] = all ? sums.find(multiply_high(bits, all), f) : -1;
  });
}

void law_copy(const LawOf& p, const Queue& q) {
  each_law(p.law, q, [&](int64_t row, const float* w, uint64_t all) {
    const float scale = all ? scale_of(all) : 0.f;
    float* out = p.probs + row * p.law.V;
    for (int x = 0; x < p.law.V; ++x) out[x] = exact::mul(w[x], scale);
  });
}

void draw_row(const Draw& p, int64_t row) {
  const float* w = p.probs + row * p.stride;
  int32_t* out = p.tokens + row * p.count;
  BlockSums sums;
  uint64_t all = sums.fill(p.V, [&](int x) { return w[x]; });
  const Stream random{p.seed, uint32_t(p.stream[row])};
  for (int i = 0; i < p.count; ++i) {
    const auto left = [&](int x) {
      if (!p.replace)
        for (int j = 0; j < i; ++j)
          if (out[j] == x) return 0.f;
      return w[x];
    };
    out[i] = -1;
    if (all == 0) continue;
    const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(i), Use(p.use));
    out[i] = sums.find(multiply_high(bits, all), left);
    if (p.replace) continue;
    const uint64_t gone = exact::fixed(w[out[i]]);
    sums.at[out[i] / kSumBlock] -= gone;
    all -= gone;
  }
}

void draw_copy(const Draw& p, const Queue& q) {
  q.parallel(p.rows, 1, [&](int64_t r0, int64_t r1) {
    for (int64_t row = r0; row < r1; ++row) draw_row(p, row);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(sample, sample_copy, Sample)
TOKOPS_ISA_KERNEL(law, law_copy, LawOf)
TOKOPS_ISA_KERNEL(draw, draw_copy, Draw)
