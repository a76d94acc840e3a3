#include "grammar/byte_marginal.h"

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

// Sums of one run: tokens of one byte lie side by side.
template <class T>
void sum_row(const ByteMarginal& p, int64_t row) {
  const T* logp = static_cast<const T*>(p.logp) + row * p.stride;
  float* out = p.out + row * kByteBins;
  for (int b = 0; b < kByteBins; ++b) out[b] = -INFINITY;
  const Run run = run_of_row(p, row);
  const auto at = [&](int64_t i) { return sane_logit(to_float(logp[p.order[i]])); };
  for (int64_t begin = run.low, end; begin < run.high; begin = end) {
    const int place = place_of(p, begin, p.depth[row]);
    float top = -INFINITY;
    for (end = begin; end < run.high && place_of(p, end, p.depth[row]) == place; ++end) {
      const float x = at(end);
      top = x > top ? x : top;
    }
    if (!(top > -INFINITY)) continue;
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += exact::exp_nonpositive(at(i) - top);
    out[bin_of(place)] = bin_mass(top, float(sum));
  }
}

void byte_marginal_copy(const ByteMarginal& p, const Queue& q) {
  q.parallel(p.B, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t row = b0; row < b1; ++row) {
      if (p.dtype == DType::f32)
        sum_row<float>(p, row);
      else if (p.dtype == DType::bf16)
        sum_row<bf16>(p, row);
      else
        sum_row<f16>(p, row);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(byte_marginal, byte_marginal_copy, ByteMarginal)
