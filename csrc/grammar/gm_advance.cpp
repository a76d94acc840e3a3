#include "grammar/gm_advance.h"

#include "grammar/automaton_check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "gm_advance";

void check_dense(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), kOp, ": ", name, " must be contiguous");
}

void gm_advance_op(const Tensor& state, const Tensor& tokens, const Tensor& next,
                   const Tensor& accepting, const Tensor& token_offset, const Tensor& token_bytes,
                   const Tensor& eos, const Tensor& missed, const Tensor& history,
                   const Tensor& position) {
  GmAdvance p{};
  check_tensor(kOp, "state", state, 1, {ScalarType::Int}, state);
  p.B = state.size(0);
  check_tensor(kOp, "tokens", tokens, 1, {ScalarType::Int, ScalarType::Long}, state);
  check_shape(kOp, "tokens", tokens, {p.B}, "[B]");
  p.wide = tokens.scalar_type() == ScalarType::Long;
  const AutomatonTensors a =
      check_automaton(kOp, state, next, accepting, token_offset, token_bytes, eos);
  p.tables = a.tables;
  p.text = a.text;
  check_tensor(kOp, "missed", missed, 2, {ScalarType::Int}, state);
  check_shape(kOp, "missed", missed, {p.B, 2}, "[B, 2]");
  check_tensor(kOp, "history", history, 2, {ScalarType::Int}, state);
  p.H = history.size(0);
  STD_TORCH_CHECK(p.H >= 1, kOp, ": history must have at least 1 row, got 0");
  check_shape(kOp, "history", history, {p.H, p.B}, "[H, B]");
  check_tensor(kOp, "position", position, 1, {ScalarType::Int}, state);
  check_shape(kOp, "position", position, {p.B}, "[B]");
  check_dense("state", state);
  check_dense("missed", missed);
  check_dense("history", history);
  check_dense("position", position);
  if (p.B == 0) return;
  const Tensor ids = torch::stable::contiguous(tokens);
  p.state = state.mutable_data_ptr<int32_t>();
  p.tokens = ids.const_data_ptr();
  p.missed = missed.mutable_data_ptr<int32_t>();
  p.history = history.mutable_data_ptr<int32_t>();
  p.position = position.mutable_data_ptr<int32_t>();
  Launch launch(state);
  gm_advance(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("gm_advance", TORCH_BOX(&gm_advance_op)); }
}  // namespace tokops
