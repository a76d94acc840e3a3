#include "kvcache/kv_dequantize.h"

#include "kvcache/pools.h"

namespace tokops {
namespace {

constexpr const char* kOp = "kv_dequantize";

Tensor given_or_empty(const std::optional<Tensor>& t, const Tensor& like) {
  if (t) return *t;
  return torch::stable::new_empty(like, std::array<int64_t, 1>{0}, ScalarType::Half);
}

Tensor kv_dequantize_op(const Tensor& codes, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& zero, const std::optional<Tensor>& norm,
                        int64_t codec, int64_t dim) {
  const Tensor scales = given_or_empty(scale, codes), zeros = given_or_empty(zero, codes);
  KvDequantize p{};
  p.pool = packed_pool(kOp, "", codes, scales, zeros, codec);
  STD_TORCH_CHECK(dim == p.pool.D, kOp, ": dim must be the ", p.pool.D,
                  " elements of a row of codes, got ", dim);
  if (norm) {
    check_tensor(kOp, "norm", *norm, 3, {ScalarType::Half, ScalarType::Float}, codes);
    check_shape(kOp, "norm", *norm, {codes.size(0), codes.size(1), codes.size(2)}, "[N, H, P]");
    p.norm_dtype = norm->scalar_type() == ScalarType::Half ? DType::f16 : DType::f32;
  }
  const auto norms = contiguous_or_none(norm);
  Tensor out = torch::stable::new_empty(
      codes, std::array<int64_t, 4>{codes.size(0), codes.size(1), codes.size(2), dim},
      ScalarType::Float);
  if (out.numel() == 0) return out;
  p.norm = norms ? norms->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr<float>();
  p.H = int32_t(codes.size(1));
  Launch launch(codes);
  kv_dequantize(p, launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("kv_dequantize", TORCH_BOX(&kv_dequantize_op)); }
}  // namespace tokops
