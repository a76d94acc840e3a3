#include "kvcache/attention_mass.h"

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "attention_mass";

Tensor attention_mass_op(const Tensor& scores, const Tensor& lse, int64_t heads,
                         std::optional<double> softcap, const std::optional<Tensor>& q_lens) {
  check_tensor(kOp, "scores", scores, 4, {ScalarType::Float}, scores);
  const int64_t b = scores.size(0), t = scores.size(1), hq = scores.size(2), l = scores.size(3);
  check_tensor(kOp, "lse", lse, 3, {ScalarType::Float}, scores);
  check_shape(kOp, "lse", lse, {b, t, hq}, "[B, T, Hq]");
  STD_TORCH_CHECK(heads > 0 && hq % heads == 0, kOp, ": scores have ", hq,
                  " heads, not a multiple of heads ", heads);
  check_softcap(kOp, softcap);
  const std::optional<Tensor> lens = contiguous_or_none(q_lens);
  if (lens) {
    check_tensor(kOp, "q_lens", *lens, 1, {ScalarType::Int}, scores);
    check_shape(kOp, "q_lens", *lens, {b}, "[B]");
    if (kOnHost) check_range(kOp, "q_lens", *lens, 0, t, "0.." + std::to_string(t));
  }
  Tensor mass = torch::stable::new_empty(scores, std::array<int64_t, 3>{b, heads, l});
  if (mass.numel() == 0) return mass;
  const Tensor in = scores.stride(3) == 1 ? scores : torch::stable::contiguous(scores);
  const Tensor norms = torch::stable::contiguous(lse);
  Launch launch(scores);
  attention_mass({static_cast<const float*>(in.const_data_ptr()), in.stride(0), in.stride(1),
                  in.stride(2), static_cast<const float*>(norms.const_data_ptr()),
                  data_or_null<int32_t>(lens), mass.mutable_data_ptr<float>(), b, t, l, int32_t(hq),
                  int32_t(heads), float(softcap.value_or(0))},
                 launch.queue);
  return mass;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("attention_mass", TORCH_BOX(&attention_mass_op)); }
}  // namespace tokops
