#include "grammar/delay_k_update.h"

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "delay_k_update";

std::tuple<Tensor, Tensor> delay_k_update_op(const Tensor& count, const Tensor& scores,
                                             const std::optional<Tensor>& valid, double theta,
                                             int64_t k) {
  check_tensor(kOp, "scores", scores, 2, {ScalarType::Float}, scores);
  const int64_t batch = scores.size(0);
  check_tensor(kOp, "count", count, 1, {ScalarType::Int}, scores);
  check_shape(kOp, "count", count, {batch}, "[B]");
  STD_TORCH_CHECK(batch <= 1 || count.stride(0) == 1, kOp, ": count must be contiguous");
  if (valid) {
    check_tensor(kOp, "valid", *valid, 2, {ScalarType::Bool}, scores);
    check_shape(kOp, "valid", *valid, {batch, scores.size(1)}, "[B, n]");
  }
  STD_TORCH_CHECK(k >= 1, kOp, ": k must be at least 1, got ", k);
  const Tensor chances = torch::stable::contiguous(scores);
  const auto live = contiguous_or_none(valid);
  Tensor stop = torch::stable::new_empty(scores, std::array<int64_t, 1>{batch}, ScalarType::Bool);
  Tensor first = torch::stable::new_empty(scores, std::array<int64_t, 1>{batch}, ScalarType::Int);
  if (batch == 0) return {stop, first};
  Launch launch(scores);
  delay_k_update(
      {count.mutable_data_ptr<int32_t>(), static_cast<const float*>(chances.const_data_ptr()),
       data_or_null<bool>(live), batch, scores.size(1), float(theta), k,
       stop.mutable_data_ptr<bool>(), first.mutable_data_ptr<int32_t>()},
      launch.queue);
  return {stop, first};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("delay_k_update", TORCH_BOX(&delay_k_update_op)); }
}  // namespace tokops
