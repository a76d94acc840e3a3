#include "grammar/first_token_control.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "first_token_control";

void check_values(const FirstTokenControl& p) {
  for (int64_t i = 0; i < p.B * p.count; ++i)
    STD_TORCH_CHECK(
        p.ids[i] >= (i % p.count == p.count - 1 ? 0 : -1) && p.ids[i] < p.V, kOp,
        ": ids must be tokens of the vocabulary, or -1 for a category that is not there, "
        "got ",
        p.ids[i]);
  for (int64_t b = 0; b < p.B; ++b)
    STD_TORCH_CHECK(p.mode[b] >= 0 && p.mode[b] <= 2, kOp, ": mode must be 0, 1 or 2, got ",
                    p.mode[b]);
}

std::tuple<Tensor, Tensor> first_token_control_op(const Tensor& logits, const Tensor& ids,
                                                  const Tensor& tau, const Tensor& mode,
                                                  double temperature) {
  STD_TORCH_CHECK(logits.dim() == 2, kOp, ": logits must have 2 dimensions, got ", logits.dim());
  FirstTokenControl p{};
  p.dtype = dtype_of(logits, kOp, "logits");
  const int64_t v = logits.size(1);
  STD_TORCH_CHECK(v >= 1 && v <= kMostVocabulary, kOp, ": the vocabulary must be 1..",
                  kMostVocabulary, " tokens, got ", v);
  p.B = logits.size(0);
  p.V = int32_t(v);
  check_tensor(kOp, "ids", ids, 2, {ScalarType::Int}, logits);
  const int64_t count = ids.size(1);
  STD_TORCH_CHECK(ids.size(0) == p.B && count >= 2 && count <= kMostControls, kOp,
                  ": ids must be [B, C + 1] with B ", p.B, " and C 1..", kMostControls - 1,
                  ", got ", list_of(ids.sizes()));
  check_tensor(kOp, "tau", tau, 2, {ScalarType::Float}, logits);
  check_shape(kOp, "tau", tau, {p.B, count - 1}, "[B, C]");
  check_tensor(kOp, "mode", mode, 1, {ScalarType::Int}, logits);
  check_shape(kOp, "mode", mode, {p.B}, "[B]");
  STD_TORCH_CHECK(temperature >= 1e-5 && temperature <= 1e5, kOp,
                  ": temperature must be 1e-5..1e5, got ", temperature);
  const Tensor tokens = contiguous(ids), limits = contiguous(tau), modes = contiguous(mode);
  p.count = int32_t(count);
  p.ids = static_cast<const int32_t*>(tokens.const_data_ptr());
  p.tau = static_cast<const float*>(limits.const_data_ptr());
  p.mode = static_cast<const int32_t*>(modes.const_data_ptr());
  p.temperature = float(temperature);
  if (kOnHost) check_values(p);
  Tensor next = torch::stable::new_empty(logits, std::array<int64_t, 1>{p.B}, ScalarType::Int);
  Tensor score =
      torch::stable::new_empty(logits, std::array<int64_t, 2>{p.B, count}, ScalarType::Float);
  if (p.B > 0) {
    const Tensor from = dense_rows(logits);
    p.logits = from.const_data_ptr();
    p.stride = from.stride(0);
    p.next = next.mutable_data_ptr<int32_t>();
    p.score = score.mutable_data_ptr<float>();
    Launch launch(logits);
    first_token_control(p, launch.queue);
  }
  return {next, score};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("first_token_control", TORCH_BOX(&first_token_control_op)); }
}  // namespace tokops
