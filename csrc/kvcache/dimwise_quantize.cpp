#include "kvcache/dimwise_quantize.h"

#include <tuple>

#include "kvcache/dimwise_check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "dimwise_quantize";

std::tuple<Tensor, Tensor> dimwise_quantize_op(const Tensor& x, const Tensor& levels, double lo,
                                               double hi, double r) {
  check_tensor(kOp, "x", x, x.dim(), {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               x);
  const DimwiseScale scale = check_scale(kOp, lo, hi, r);
  const Tensor table = check_levels(kOp, levels, x, r);
  Tensor codes = torch::stable::new_empty(x, shape_of(x), ScalarType::Byte);
  Tensor values = torch::stable::new_empty(x, shape_of(x));
  if (x.numel() == 0) return {codes, values};
  const Tensor in = torch::stable::contiguous(x);
  Launch launch(x);
  dimwise_quantize({in.const_data_ptr(), static_cast<const float*>(table.const_data_ptr()),
                    codes.mutable_data_ptr<uint8_t>(), values.mutable_data_ptr(), x.numel(),
                    int32_t(table.size(0)), scale, dtype_of(x, kOp, "x")},
                   launch.queue);
  return {codes, values};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("dimwise_quantize", TORCH_BOX(&dimwise_quantize_op)); }
}  // namespace tokops
