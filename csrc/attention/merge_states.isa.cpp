#include "attention/merge_states.h"

#include <math.h>

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 16384;

// Shares of the parts of one row; returns the merged lse. A NaN in any lse makes everything NaN.
float shares_of(const MergeStates& p, int64_t row, float* share) {
  float top = -INFINITY, total = 0;
  for (int i = 0; i < p.parts; ++i) {
    const float x = p.lses[i][row];
    top = x > top || x != x ? x : top;
  }
  const float base = top == -INFINITY ? 0.f : top;
  for (int i = 0; i < p.parts; ++i) total += share[i] = expf(p.lses[i][row] - base);
  for (int i = 0; i < p.parts; ++i) share[i] = total == 0 ? 0.f : share[i] / total;
  return base + logf(total);
}

inline void put(float* to, Vec a) { store(to, a); }
template <class T>
void put(T* to, Vec a) {
  float x[Vec::width];
  store(x, a);
  for (int i = 0; i < Vec::width; ++i) from_float(x[i], to + i);
}

template <class T>
void merge_rows(const MergeStates& p, int64_t r0, int64_t r1) {
  float share[kMostParts];
  for (int64_t r = r0; r < r1; ++r) {
    p.lse[r] = shares_of(p, r, share);
    T* out = static_cast<T*>(p.out) + r * p.D;
    const auto row_of = [&](int i) { return static_cast<const T*>(p.outs[i]) + r * p.D; };
    int64_t d = 0;
    for (; d + Vec::width <= p.D; d += Vec::width) {
      Vec sum = zero();
      for (int i = 0; i < p.parts; ++i)  // a part without weight may hold anything, NaN included
        if (share[i] != 0) sum = fma(splat(share[i]), load(row_of(i) + d), sum);
      put(out + d, sum);
    }
    for (; d < p.D; ++d) {
      float sum = 0;
      for (int i = 0; i < p.parts; ++i)
        if (share[i] != 0) sum += share[i] * to_float(row_of(i)[d]);
      from_float(sum, out + d);
    }
  }
}

void merge_states_copy(const MergeStates& p, const Queue& q) {
  q.parallel(p.rows, kElementsPerTask / (p.D * p.parts + 1) + 1, [&](int64_t r0, int64_t r1) {
    switch (p.dtype) {
      case DType::f32:
        return merge_rows<float>(p, r0, r1);
      case DType::bf16:
        return merge_rows<bf16>(p, r0, r1);
      case DType::f16:
        return merge_rows<f16>(p, r0, r1);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(merge_states, merge_states_copy, MergeStates)
