#include "attention/vote_scores.h"

#include <string>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "vote_scores";

Tensor vote_scores_op(const Tensor& scores, int64_t kv_heads, std::string kind) {
  check_tensor(kOp, "scores", scores, 4, {ScalarType::Float}, scores);
  STD_TORCH_CHECK(kind == "soft_vote" || kind == "soft_max", kOp,
                  ": kind must be soft_vote or soft_max, got ", kind);
  STD_TORCH_CHECK(kv_heads > 0 && scores.size(2) % kv_heads == 0, kOp, ": scores have ",
                  scores.size(2), " heads, not a multiple of kv_heads ", kv_heads);
  const bool sum = kind == "soft_vote";
  const int64_t b = scores.size(0), t = scores.size(1), heads = scores.size(2),
                length = scores.size(3);
  const int64_t groups = sum ? 1 : kv_heads;
  Tensor votes = torch::stable::new_empty(scores, std::array<int64_t, 4>{b, t, groups, length});
  if (votes.numel() == 0) return votes;
  const Tensor dense = torch::stable::contiguous(scores);
  const Tensor stats = torch::stable::new_empty(scores, std::array<int64_t, 1>{b * t * heads * 2});
  Launch launch(scores);
  vote_scores(
      {static_cast<const float*>(dense.const_data_ptr()), votes.mutable_data_ptr<float>(),
       stats.mutable_data_ptr<float>(), b * t, length, int32_t(heads), int32_t(groups), sum},
      launch.queue);
  return votes;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("vote_scores", TORCH_BOX(&vote_scores_op)); }
}  // namespace tokops
