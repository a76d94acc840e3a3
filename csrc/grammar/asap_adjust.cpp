#include "grammar/asap_adjust.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

Tensor asap_adjust_op(const Tensor& logits, const std::optional<Tensor>& mask, const Tensor& theta,
                      const Tensor& rows) {
  constexpr const char* op = "asap_adjust";
  STD_TORCH_CHECK(logits.dim() == 2, op, ": logits must have 2 dimensions, got ", logits.dim());
  AsapAdjust p{};
  p.dtype = dtype_of(logits, op, "logits");
  p.B = logits.size(0);
  p.V = logits.size(1);
  Tensor bits;
  if (mask) {
    p.mask = bitmask_of(op, "mask", *mask, p.B, logits, &bits);
    STD_TORCH_CHECK(p.mask.width > 0, op, ": mask must have at least 1 word a row");
  }
  check_tensor(op, "log_theta", theta, 2, {ScalarType::Float}, logits);
  check_shape(op, "log_theta", theta, {theta.size(0), p.V}, "[R, V]");
  check_tensor(op, "rows", rows, 1, {ScalarType::Int}, logits);
  check_shape(op, "rows", rows, {p.B}, "[B]");
  const Tensor nodes = torch::stable::contiguous(rows);
  p.R = theta.size(0);
  if (kOnHost) check_range(op, "rows", nodes, -1, p.R - 1, "-1.." + std::to_string(p.R - 1));
  Tensor out =
      torch::stable::new_empty(logits, std::array<int64_t, 2>{p.B, p.V}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const Tensor from = dense_rows(logits), futures = dense_rows(theta);
  p.logits = from.const_data_ptr();
  p.stride = from.stride(0);
  p.theta = static_cast<const float*>(futures.const_data_ptr());
  p.theta_stride = futures.stride(0);
  p.rows = static_cast<const int32_t*>(nodes.const_data_ptr());
  p.out = out.mutable_data_ptr<float>();
  Launch launch(logits);
  asap_adjust(p, launch.queue);
  return out;
}

Tensor node_mass_op(const Tensor& logp, const Tensor& theta) {
  constexpr const char* op = "node_mass";
  check_tensor(op, "logp", logp, 2, {ScalarType::Float}, logp);
  check_tensor(op, "log_theta", theta, 2, {ScalarType::Float}, logp);
  check_shape(op, "log_theta", theta, {logp.size(0), logp.size(1)}, "[N, V]");
  Tensor out =
      torch::stable::new_empty(logp, std::array<int64_t, 1>{logp.size(0)}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const Tensor a = dense_rows(logp), b = dense_rows(theta);
  Launch launch(logp);
  node_mass(
      {static_cast<const float*>(a.const_data_ptr()), static_cast<const float*>(b.const_data_ptr()),
       a.stride(0), b.stride(0), logp.size(0), logp.size(1), out.mutable_data_ptr<float>()},
      launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) {
  m.impl("asap_adjust", TORCH_BOX(&asap_adjust_op));
  m.impl("node_mass", TORCH_BOX(&node_mass_op));
}
}  // namespace tokops
