// Tables and vocabulary as the ops that read them get them.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "grammar/automaton.h"

namespace tokops {

// Holds what the pointers of `tables` and `text` point into.
struct AutomatonTensors {
  Tensor next, accepting, token_offset, token_bytes, eos;
  Automaton tables;
  TokenBytes text;
};

inline AutomatonTensors check_automaton(const char* op, const Tensor& state, const Tensor& next,
                                        const Tensor& accepting, const Tensor& token_offset,
                                        const Tensor& token_bytes, const Tensor& eos) {
  using torch::stable::contiguous;
  check_tensor(op, "next", next, 2, {ScalarType::Int}, state);
  const int64_t states = next.size(0);
  check_shape(op, "next", next, {states, 256}, "[S, 256]");
  check_tensor(op, "accepting", accepting, 1, {ScalarType::Byte}, state);
  check_shape(op, "accepting", accepting, {states}, "[S]");
  check_tensor(op, "token_offset", token_offset, 1, {ScalarType::Int}, state);
  STD_TORCH_CHECK(token_offset.size(0) >= 1, op, ": token_offset must be [V + 1], got [0]");
  check_tensor(op, "token_bytes", token_bytes, 1, {ScalarType::Byte}, state);
  check_tensor(op, "eos", eos, 1, {ScalarType::Int}, state);
  AutomatonTensors a{contiguous(next),
                     contiguous(accepting),
                     contiguous(token_offset),
                     contiguous(token_bytes),
                     contiguous(eos),
                     {},
                     {}};
  a.tables.next = static_cast<const int32_t*>(a.next.const_data_ptr());
  a.tables.accepting = static_cast<const uint8_t*>(a.accepting.const_data_ptr());
  a.tables.S = states;
  a.text.offset = static_cast<const int32_t*>(a.token_offset.const_data_ptr());
  a.text.bytes = static_cast<const uint8_t*>(a.token_bytes.const_data_ptr());
  a.text.eos = static_cast<const int32_t*>(a.eos.const_data_ptr());
  a.text.V = token_offset.size(0) - 1;
  a.text.E = eos.size(0);
  a.text.size = token_bytes.size(0);
  return a;
}

}  // namespace tokops
