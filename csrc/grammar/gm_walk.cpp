#include "grammar/gm_walk.h"

#include "grammar/automaton_check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "gm_walk";

void gm_walk_op(const Tensor& state, const Tensor& mask_of, const Tensor& next,
                const Tensor& accepting, const Tensor& token_offset, const Tensor& token_bytes,
                const Tensor& eos, const Tensor& out, const Tensor& left) {
  GmWalk p{};
  check_tensor(kOp, "state", state, 1, {ScalarType::Int}, state);
  p.B = state.size(0);
  const AutomatonTensors a =
      check_automaton(kOp, state, next, accepting, token_offset, token_bytes, eos);
  p.tables = a.tables;
  p.text = a.text;
  check_tensor(kOp, "mask_of", mask_of, 1, {ScalarType::Int}, state);
  check_shape(kOp, "mask_of", mask_of, {p.tables.S}, "[S]");
  check_tensor(kOp, "out", out, 2, {ScalarType::Int}, state);
  p.W = out.size(1);
  check_shape(kOp, "out", out, {p.B, p.W}, "[B, W]");
  check_tensor(kOp, "left", left, 2, {ScalarType::Int}, state);
  p.parts = walk_parts(p.W);
  check_shape(kOp, "left", left, {p.B, p.parts}, "[B, ceil(W / 32)]");
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": out must be contiguous");
  STD_TORCH_CHECK(left.is_contiguous(), kOp, ": left must be contiguous");
  if (p.B == 0 || p.W == 0) return;
  const Tensor states = contiguous(state), masks = contiguous(mask_of);
  p.state = static_cast<const int32_t*>(states.const_data_ptr());
  p.mask_of = static_cast<const int32_t*>(masks.const_data_ptr());
  p.out = out.mutable_data_ptr<int32_t>();
  p.left = left.mutable_data_ptr<int32_t>();
  Launch launch(state);
  gm_walk(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("gm_walk", TORCH_BOX(&gm_walk_op)); }
}  // namespace tokops
