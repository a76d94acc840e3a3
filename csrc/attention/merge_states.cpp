#include "attention/merge_states.h"

#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "merge_states";

void check_parts(const std::vector<Tensor>& outs, const std::vector<Tensor>& lses) {
  STD_TORCH_CHECK(!outs.empty() && outs.size() == lses.size(), kOp,
                  ": outs and lses must be as many, at least 1, got ", outs.size(), " and ",
                  lses.size());
  STD_TORCH_CHECK(outs.size() <= kMostParts, kOp, ": at most ", kMostParts, " parts, got ",
                  outs.size());
  const Tensor& first = outs[0];
  STD_TORCH_CHECK(first.dim() >= 1, kOp, ": outs must have at least 1 dimension");
  const std::vector<int64_t> shape = shape_of(first), rows(shape.begin(), shape.end() - 1);
  for (size_t i = 0; i < outs.size(); ++i) {
    check_tensor(kOp, "outs", outs[i], first.dim(),
                 {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, first);
    check_shape(kOp, "outs", outs[i], shape, "all one shape");
    STD_TORCH_CHECK(outs[i].scalar_type() == first.scalar_type(), kOp,
                    ": outs must share a dtype, got ", dtype_name(first.scalar_type()), " and ",
                    dtype_name(outs[i].scalar_type()));
    check_tensor(kOp, "lses", lses[i], first.dim() - 1, {ScalarType::Float}, first);
    check_shape(kOp, "lses", lses[i], rows, "outs' shape without its last axis");
  }
}

std::tuple<Tensor, Tensor> merge_states_op(std::vector<Tensor> outs, std::vector<Tensor> lses) {
  check_parts(outs, lses);
  Tensor out = torch::stable::new_empty(outs[0], outs[0].sizes());
  Tensor lse = torch::stable::new_empty(lses[0], lses[0].sizes());
  if (lse.numel() == 0) return {out, lse};
  MergeStates p{};
  for (size_t i = 0; i < outs.size(); ++i) {
    outs[i] = torch::stable::contiguous(outs[i]);
    lses[i] = torch::stable::contiguous(lses[i]);
    p.outs[i] = outs[i].const_data_ptr();
    p.lses[i] = static_cast<const float*>(lses[i].const_data_ptr());
  }
  p.parts = int32_t(outs.size());
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr<float>();
  p.rows = lse.numel();
  p.D = out.size(out.dim() - 1);
  p.dtype = dtype_of(out, kOp, "outs");
  Launch launch(out);
  merge_states(p, launch.queue);
  return {out, lse};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("merge_states", TORCH_BOX(&merge_states_op)); }
}  // namespace tokops
