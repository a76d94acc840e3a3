#include "kvcache/dimwise_dequantize.h"

#include "kvcache/dimwise_check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "dimwise_dequantize";

Tensor dimwise_dequantize_op(const Tensor& codes, const Tensor& levels, double lo, double hi,
                             double r) {
  check_tensor(kOp, "codes", codes, codes.dim(), {ScalarType::Byte}, codes);
  const DimwiseScale scale = check_scale(kOp, lo, hi, r);
  const Tensor table = check_levels(kOp, levels, codes, r);
  Tensor values = torch::stable::new_empty(codes, shape_of(codes), ScalarType::Float);
  if (codes.numel() == 0) return values;
  const Tensor in = torch::stable::contiguous(codes);
  const uint8_t* x = static_cast<const uint8_t*>(in.const_data_ptr());
  const int64_t count = table.size(0);
  if (kOnHost) {
    uint8_t top = 0;
    for (int64_t i = 0; i < in.numel(); ++i) top = x[i] > top ? x[i] : top;
    STD_TORCH_CHECK(top < count, kOp, ": codes must be 0..", count - 1, ", got ", int(top));
  }
  Launch launch(codes);
  dimwise_dequantize({x, static_cast<const float*>(table.const_data_ptr()),
                      values.mutable_data_ptr<float>(), codes.numel(), int32_t(count), scale},
                     launch.queue);
  return values;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("dimwise_dequantize", TORCH_BOX(&dimwise_dequantize_op)); }
}  // namespace tokops
