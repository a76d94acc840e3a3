#include "kvcache/hadamard.h"

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 32 << 10;

// Sums and differences of pairs of lanes `Step` apart: lane i gets x[i] + x[i ^ Step] where i has
// the bit Step not set, and x[i ^ Step] - x[i] where it has.
template <int Step>
inline Vec butterfly(Vec x) {
  float sign[Vec::width];
  for (int i = 0; i < Vec::width; ++i) sign[i] = i & Step ? -1.f : 1.f;
  return fma(x, load(sign), swap_lanes<Step>(x));
}

// The stages within vectors of a block of n floats, n at least the width.
template <int Step>
inline void stages_within(float* x, int n) {
  for (int i = 0; i < n; i += Vec::width) store(x + i, butterfly<Step>(load(x + i)));
  if constexpr (Step * 2 < Vec::width) stages_within<Step * 2>(x, n);
}

// H without its scale on a block of n floats, in place.
void transform_block(float* x, int n) {
  int step = 1;
  if (n >= Vec::width) {
    stages_within<1>(x, n);
    step = Vec::width;
  }
  for (; step < n; step *= 2)
    for (int i = 0; i < n; i += 2 * step)
      if (step >= Vec::width) {
        for (int j = i; j < i + step; j += Vec::width) {
          const Vec a = load(x + j), b = load(x + j + step);
          store(x + j, a + b);
          store(x + j + step, a - b);
        }
      } else {
        for (int j = i; j < i + step; ++j) {
          const float a = x[j], b = x[j + step];
          x[j] = a + b;
          x[j + step] = a - b;
        }
      }
}

template <class T>
void transform_rows(const Hadamard& p, int64_t r0, int64_t r1) {
  const float scale = 1.f / std::sqrt(float(p.n));
  float x[kMaxHadamardDim];
  for (int64_t r = r0; r < r1; ++r) {
    const T* from = reinterpret_cast<const T*>(hadamard_row(p, r));
    T* to = reinterpret_cast<T*>(p.out) + r * p.D;
    int d = 0;
    for (; d + Vec::width <= p.D; d += Vec::width) store(x + d, load(from + d));
    for (; d < p.D; ++d) x[d] = to_float(from[d]);
    if (p.signs && !p.inverse)
      for (d = 0; d < p.D; ++d) x[d] *= p.signs[d];
    for (d = 0; d < p.D; d += p.n) transform_block(x + d, p.n);
    for (d = 0; d < p.D; ++d) x[d] *= scale;
    if (p.signs && p.inverse)
      for (d = 0; d < p.D; ++d) x[d] *= p.signs[d];
    for (d = 0; d < p.D; ++d) from_float(x[d], to + d);
  }
}

void hadamard_copy(const Hadamard& p, const Queue& q) {
  q.parallel(p.rows, kElementsPerTask / p.D + 1, [&](int64_t r0, int64_t r1) {
    p.dtype == DType::f32    ? transform_rows<float>(p, r0, r1)
    : p.dtype == DType::bf16 ? transform_rows<bf16>(p, r0, r1)
                             : transform_rows<f16>(p, r0, r1);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(hadamard, hadamard_copy, Hadamard)
