#include "attention/topk_positions.h"

#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "topk_positions";

std::optional<Tensor> per_row(const std::optional<Tensor>& t, const char* name, ScalarType dtype,
                              const std::vector<int64_t>& rows, const Tensor& scores) {
  if (!t) return std::nullopt;
  check_tensor(kOp, name, *t, int64_t(rows.size()), {dtype}, scores);
  check_shape(kOp, name, *t, rows, "scores' shape without its last axis");
  return torch::stable::contiguous(*t);
}

std::tuple<Tensor, Tensor> topk_positions_op(const Tensor& scores,
                                             const std::optional<Tensor>& lens,
                                             const std::optional<Tensor>& k, int64_t k_max,
                                             const std::optional<Tensor>& threshold) {
  STD_TORCH_CHECK(scores.dim() >= 1, kOp, ": scores must have at least 1 dimension");
  check_tensor(kOp, "scores", scores, scores.dim(), {ScalarType::Float}, scores);
  std::vector<int64_t> shape = shape_of(scores);
  const int64_t length = shape.back();
  shape.pop_back();
  const auto row_lens = per_row(lens, "lens", ScalarType::Int, shape, scores);
  const auto row_k = per_row(k, "k", ScalarType::Int, shape, scores);
  const auto row_threshold = per_row(threshold, "threshold", ScalarType::Float, shape, scores);
  STD_TORCH_CHECK(k_max >= 0, kOp, ": k must be >= 0, got ", k_max);
  constexpr int64_t kLongest = INT32_MAX - 8192;  // kernels step past the end by less than this
  STD_TORCH_CHECK(length <= kLongest && k_max <= kLongest, kOp, ": rows and k must be at most ",
                  kLongest, ", got ", length, " scores and k ", k_max);
  if (kOnHost && row_lens)
    check_range(kOp, "lens", *row_lens, 0, length, "0.." + std::to_string(length));
  if (kOnHost && row_k) check_range(kOp, "k", *row_k, 0, INT32_MAX, ">= 0");

  Tensor counts = torch::stable::new_empty(scores, shape, ScalarType::Int);
  shape.push_back(k_max);
  Tensor positions = torch::stable::new_empty(scores, shape, ScalarType::Int);
  if (counts.numel() == 0) return {positions, counts};

  const Tensor dense = torch::stable::contiguous(scores);
  TopkPositions p{static_cast<const float*>(dense.const_data_ptr()),
                  data_or_null<int32_t>(row_lens),
                  data_or_null<int32_t>(row_k),
                  data_or_null<float>(row_threshold),
                  positions.mutable_data_ptr<int32_t>(),
                  counts.mutable_data_ptr<int32_t>(),
                  counts.numel(),
                  length,
                  k_max,
                  nullptr,
                  0};
  Launch launch(scores);
  std::optional<Tensor> workspace;
  if constexpr (kOnHost) {
    const int64_t threads = torch::stable::get_num_threads();
    p.slots = int32_t(p.rows < threads ? p.rows : threads);
    workspace = torch::stable::new_empty(
        scores, std::array<int64_t, 1>{int64_t(topk_positions_workspace(p))}, ScalarType::Byte);
    p.workspace = workspace->mutable_data_ptr();
  }
  topk_positions(p, launch.queue);
  return {positions, counts};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("topk_positions", TORCH_BOX(&topk_positions_op)); }
}  // namespace tokops
