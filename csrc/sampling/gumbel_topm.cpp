#include "sampling/gumbel_topm.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

constexpr const char* kOp = "gumbel_topm";

Tensor numbers(const char* name, const Tensor& t, const Tensor& logits) {
  check_tensor(kOp, name, t, 1, {ScalarType::Long}, logits);
  check_shape(kOp, name, t, {logits.size(0)}, "[rows]");
  return contiguous(t);
}

std::tuple<Tensor, Tensor, Tensor> gumbel_topm_op(const Tensor& logits, int64_t m, int64_t seed,
                                                  const Tensor& stream, const Tensor& position,
                                                  int64_t round,
                                                  const std::optional<Tensor>& exclude,
                                                  const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(logits.dim() == 2, kOp, ": logits must have 2 dimensions, got ", logits.dim());
  GumbelTopm p{};
  p.dtype = dtype_of(logits, kOp, "logits");
  const int64_t v = logits.size(1), most_rounds = int64_t(1) << kRoundBits;
  STD_TORCH_CHECK(v >= 1 && v <= kMostVocabulary, kOp, ": the vocabulary must be 1..",
                  kMostVocabulary, " tokens, got ", v);
  STD_TORCH_CHECK(m >= 1 && m <= kMostDrawn, kOp, ": m must be 1..", kMostDrawn, ", got ", m);
  STD_TORCH_CHECK(round >= 0 && round < most_rounds, kOp, ": round must be 0..", most_rounds - 1,
                  ", got ", round);
  p.rows = logits.size(0);
  p.V = int32_t(v);
  p.m = int32_t(m);
  p.seed = uint64_t(seed);
  p.round = int32_t(round);
  const Tensor streams = numbers("stream", stream, logits);
  const Tensor positions = numbers("position", position, logits);
  p.stream = static_cast<const int64_t*>(streams.const_data_ptr());
  p.position = static_cast<const int64_t*>(positions.const_data_ptr());
  Tensor bits;
  if (mask) {
    p.mask = bitmask_of(kOp, "mask", *mask, p.rows, logits, &bits);
    STD_TORCH_CHECK(p.mask.width > 0, kOp, ": mask must have at least 1 word a row");
  }
  std::optional<Tensor> out_of_race;
  if (exclude) {
    check_tensor(kOp, "exclude", *exclude, 2, {ScalarType::Int}, logits);
    STD_TORCH_CHECK(exclude->size(0) == p.rows, kOp, ": exclude must have ", p.rows, " rows, got ",
                    exclude->size(0));
    out_of_race = contiguous(*exclude);
    p.exclude = data_or_null<int32_t>(out_of_race);
    p.excluded = int32_t(exclude->size(1));
  }
  Tensor ids = new_empty(logits, std::array<int64_t, 2>{p.rows, m}, ScalarType::Int);
  Tensor logp = new_empty(logits, std::array<int64_t, 2>{p.rows, m}, ScalarType::Float);
  Tensor logz = new_empty(logits, std::array<int64_t, 1>{p.rows}, ScalarType::Float);
  if (p.rows > 0) {
    const Tensor dense = dense_rows(logits);
    p.logits = dense.const_data_ptr();
    p.stride = dense.stride(0);
    p.ids = ids.mutable_data_ptr<int32_t>();
    p.logp = logp.mutable_data_ptr<float>();
    p.logz = logz.mutable_data_ptr<float>();
    Launch launch(logits);
    gumbel_topm(p, launch.queue);
  }
  return {ids, logp, logz};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("gumbel_topm", TORCH_BOX(&gumbel_topm_op)); }
}  // namespace tokops
