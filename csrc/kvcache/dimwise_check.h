// Checks of levels and scale that the two dimension-wise ops share. For bindings.
#pragma once
#include <cmath>

#include "common/check.h"
#include "kvcache/dimwise.h"

namespace tokops {

inline DimwiseScale check_scale(const char* op, double lo, double hi, double r) {
  STD_TORCH_CHECK(std::isfinite(lo) && std::isfinite(hi) && float(lo) < float(hi), op,
                  ": lo must be below hi, got ", lo, " and ", hi);
  STD_TORCH_CHECK(std::isfinite(hi - lo) && std::isfinite(float(hi - lo)), op,
                  ": hi - lo must be finite, got ", hi - lo);
  STD_TORCH_CHECK(std::isfinite(r) && float(r) > 0, op, ": r must be > 0, got ", r);
  return {float(lo), float(hi - lo), float(r)};
}

// Levels, contiguous: 2 to 256 of them, strictly ascending within [-r, r].
inline Tensor check_levels(const char* op, const Tensor& levels, const Tensor& like, double r) {
  check_tensor(op, "levels", levels, 1, {ScalarType::Float}, like);
  const int64_t n = levels.size(0);
  STD_TORCH_CHECK(n >= 2 && n <= kMostLevels, op, ": levels must be 2..", kMostLevels, ", got ", n);
  Tensor dense = torch::stable::contiguous(levels);
  if (kOnHost) {
    const float* x = static_cast<const float*>(dense.const_data_ptr());
    bool ok = x[0] >= -float(r) && x[n - 1] <= float(r);
    for (int64_t i = 1; i < n; ++i) ok = ok && x[i] > x[i - 1];
    STD_TORCH_CHECK(ok, op, ": levels must be strictly ascending within -r..r = ", -r, "..", r);
  }
  return dense;
}

}  // namespace tokops
