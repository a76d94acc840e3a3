#include "grammar/asap_adjust.h"

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int64_t kBlock = 1024;  // elements whose sum is kept in float32

// ln of the sum of e^x over x(0) .. x(V - 1); x gives a whole Vec, or the first few elements of one
// with -inf behind them.
template <class F>
float logsumexp(int64_t v, const F& x) {
  Vec high = splat(-INFINITY);
  for (int64_t i = 0; i < v; i += Vec::width) high = max(high, x(i));
  const float top = largest(high);
  if (!(top > -INFINITY)) return -INFINITY;
  double all = 0;
  for (int64_t begin = 0; begin < v; begin += kBlock) {
    Vec part = zero();
    const int64_t end = begin + kBlock < v ? begin + kBlock : v;
    for (int64_t i = begin; i < end; i += Vec::width)
      part = part + exp_nonpositive(x(i) - splat(top));
    all += sum(part);
  }
  return top + exact::log_positive(float(all));
}

// Elements i .. i + width of a row of v, -inf behind its end.
template <class T>
Vec row_vec(const T* row, int64_t i, int64_t v) {
  if (i + Vec::width <= v) return load(row + i);
  float x[Vec::width];
  for (int j = 0; j < Vec::width; ++j) x[j] = i + j < v ? to_float(row[i + j]) : -INFINITY;
  return load(x);
}

template <class T>
void adjust_row(const AsapAdjust& p, int64_t row) {
  const T* from = static_cast<const T*>(p.logits) + row * p.stride;
  const float lse = logsumexp(p.V, [&](int64_t i) { return sane(row_vec(from, i, p.V)); });
  const float* theta = theta_of_row(p, row);
  const int32_t* bits = bits_of_row(p.mask, row);
  float* out = p.out + row * p.V;
  for (int64_t x = 0; x < p.V; x += 32) {
    const int n = x + 32 < p.V ? 32 : int(p.V - x);
    const uint32_t allowed = bits ? word_of(p.mask, bits, x / 32) : kAllAllowed;
    for (int i = 0; i < n; ++i) {
      const float logp = sane_sum(sane_logit(to_float(from[x + i])), -lse);
      const float moved = theta ? sane_sum(logp, theta[x + i]) : logp;
      out[x + i] = allowed >> i & 1 ? moved : -INFINITY;
    }
  }
}

void asap_adjust_copy(const AsapAdjust& p, const Queue& q) {
  q.parallel(p.B, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t row = b0; row < b1; ++row) {
      if (p.dtype == DType::f32)
        adjust_row<float>(p, row);
      else if (p.dtype == DType::bf16)
        adjust_row<bf16>(p, row);
      else
        adjust_row<f16>(p, row);
    }
  });
}

void node_mass_copy(const NodeMass& p, const Queue& q) {
  q.parallel(p.N, 1, [&](int64_t n0, int64_t n1) {
    for (int64_t n = n0; n < n1; ++n) {
      const float *logp = p.logp + n * p.logp_stride, *theta = p.theta + n * p.theta_stride;
      p.out[n] = logsumexp(
          p.V, [&](int64_t i) { return sane(row_vec(logp, i, p.V) + row_vec(theta, i, p.V)); });
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(asap_adjust, asap_adjust_copy, AsapAdjust)
TOKOPS_ISA_KERNEL(node_mass, node_mass_copy, NodeMass)
