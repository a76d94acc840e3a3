#include "kvcache/hadamard.h"

#include <cmath>

#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;
constexpr const char* kOp = "hadamard";

// Whether up to three leading axes and a dense last one describe x.
bool is_simple(const Tensor& x) { return x.dim() <= 4 && (x.size(-1) == 1 || x.stride(-1) == 1); }

Tensor hadamard_op(const Tensor& x, const std::optional<Tensor>& signs, bool inverse) {
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": x must have at least 1 dimension, got 0");
  const int64_t dim = x.size(-1);
  STD_TORCH_CHECK(dim >= 1 && dim <= kMaxHadamardDim, kOp, ": the last dimension of x must be 1..",
                  kMaxHadamardDim, ", got ", dim);
  Hadamard p{};
  p.dtype = dtype_of(x, kOp, "x");
  if (signs) {
    check_tensor(kOp, "signs", *signs, 1, {ScalarType::Float}, x);
    check_shape(kOp, "signs", *signs, {dim}, "[D]");
  }
  const auto kept_signs = contiguous_or_none(signs);
  const Tensor kept = is_simple(x) ? x : contiguous(x);
  const std::vector<int64_t> shape = shape_of(x);
  Tensor out = torch::stable::new_empty(x, shape);
  if (x.numel() == 0) return out;
  const int64_t size = int64_t(x.element_size()), axes = kept.dim() - 1;
  p.x = static_cast<const char*>(kept.const_data_ptr());
  p.out = static_cast<char*>(out.mutable_data_ptr());
  p.rows = x.numel() / dim;
  p.signs = data_or_null<float>(kept_signs);
  p.inverse = inverse;
  p.D = int32_t(dim);
  p.n = int32_t(dim & -dim);
  p.b = p.c = 1;
  if (kept.is_contiguous()) {
    p.c = p.rows;
    p.stride_c = dim * size;
  } else {
    int64_t* strides[] = {&p.stride_c, &p.stride_b, &p.stride_a};
    for (int64_t i = 0; i < axes; ++i) *strides[i] = kept.stride(axes - 1 - i) * size;
    if (axes > 0) p.c = kept.size(axes - 1);
    if (axes > 1) p.b = kept.size(axes - 2);
  }
  Launch launch(x);
  hadamard(p, launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("hadamard", TORCH_BOX(&hadamard_op)); }
}  // namespace tokops
