#include "grammar/gm_compose.h"

#include <optional>

#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "gm_compose";

void gm_compose_op(const Tensor& state, const Tensor& mask_of, const Tensor& pool,
                   const Tensor& host_mask, const Tensor& eos_mask, const Tensor& out,
                   const std::optional<Tensor>& left) {
  GmCompose p{};
  check_tensor(kOp, "state", state, 1, {ScalarType::Int}, state);
  p.B = state.size(0);
  check_tensor(kOp, "mask_of", mask_of, 1, {ScalarType::Int}, state);
  p.S = mask_of.size(0);
  check_tensor(kOp, "pool", pool, 2, {ScalarType::Int}, state);
  p.R = pool.size(0);
  p.W = pool.size(1);
  check_tensor(kOp, "host_mask", host_mask, 2, {ScalarType::Int}, state);
  check_shape(kOp, "host_mask", host_mask, {p.B, p.W}, "[B, W]");
  check_tensor(kOp, "eos_mask", eos_mask, 1, {ScalarType::Int}, state);
  check_shape(kOp, "eos_mask", eos_mask, {p.W}, "[W]");
  check_tensor(kOp, "out", out, 2, {ScalarType::Int}, state);
  check_shape(kOp, "out", out, {p.B, p.W}, "[B, W]");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": out must be contiguous");
  p.parts = walk_parts(p.W);
  if (left) {
    check_tensor(kOp, "left", *left, 2, {ScalarType::Int}, state);
    check_shape(kOp, "left", *left, {p.B, p.parts}, "[B, ceil(W / 32)]");
  }
  if (p.B == 0 || p.W == 0) return;
  const Tensor states = contiguous(state), masks = contiguous(mask_of), table = contiguous(pool),
               rows = contiguous(host_mask), stops = contiguous(eos_mask);
  p.state = static_cast<const int32_t*>(states.const_data_ptr());
  p.mask_of = static_cast<const int32_t*>(masks.const_data_ptr());
  p.pool = static_cast<const int32_t*>(table.const_data_ptr());
  p.host_mask = static_cast<const int32_t*>(rows.const_data_ptr());
  p.eos_mask = static_cast<const int32_t*>(stops.const_data_ptr());
  const Tensor parts = left ? contiguous(*left) : states;
  if (left) p.left = static_cast<const int32_t*>(parts.const_data_ptr());
  p.out = out.mutable_data_ptr<int32_t>();
  Launch launch(state);
  gm_compose(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("gm_compose", TORCH_BOX(&gm_compose_op)); }
}  // namespace tokops
