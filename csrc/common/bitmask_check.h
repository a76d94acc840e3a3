// Bitmasks as arguments of bindings.
#pragma once
#include "common/bitmask.h"
#include "common/check.h"

namespace tokops {

// The last axis contiguous; rows may lie anywhere.
inline Tensor dense_rows(const Tensor& x) {
  return x.dim() == 2 && (x.stride(1) == 1 || x.size(1) <= 1) ? x : torch::stable::contiguous(x);
}

// A mask [rows, W], or [1, W] for all rows; `kept` holds it.
inline Bitmask bitmask_of(const char* op, const char* name, const Tensor& mask, int64_t rows,
                          const Tensor& like, Tensor* kept) {
  check_tensor(op, name, mask, 2, {ScalarType::Int}, like);
  STD_TORCH_CHECK(mask.size(0) == rows || mask.size(0) == 1, op, ": ", name, " must have ", rows,
                  " rows or 1, got ", mask.size(0));
  *kept = dense_rows(mask);
  return {static_cast<const int32_t*>(kept->const_data_ptr()),
          mask.size(0) == 1 ? 0 : kept->stride(0), mask.size(1)};
}

}  // namespace tokops
