#include "speculative/tree_build.h"

#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "tree_build";

// parents[0] = -1 and -1 <= parents[i] < i.
void check_parents(const Tensor& parents, int64_t b, int64_t n) {
  const int32_t* x = static_cast<const int32_t*>(parents.const_data_ptr());
  for (int64_t i = 0; i < b * n; ++i)
    STD_TORCH_CHECK(x[i] >= -1 && x[i] < (i % n ? i % n : 0), kOp,
                    ": parents must be -1 at the root and, further on, -1 (padding) or an earlier "
                    "node, got ",
                    x[i], " at node ", i % n, " of tree ", i / n);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tree_build_op(const Tensor& parents) {
  check_tensor(kOp, "parents", parents, 2, {ScalarType::Int}, parents);
  const int64_t b = parents.size(0), n = parents.size(1), w = (n + 63) / 64;
  STD_TORCH_CHECK(n >= 1 && n <= kMostNodes, kOp, ": a tree must have 1..", kMostNodes,
                  " nodes, got ", n);
  const Tensor dense = torch::stable::contiguous(parents);
  if (kOnHost) check_parents(dense, b, n);
  const auto ints = [&] {
    return torch::stable::new_empty(parents, std::array<int64_t, 2>{b, n}, ScalarType::Int);
  };
  Tensor first = ints(), next = ints(), depth = ints();
  Tensor words =
      torch::stable::new_empty(parents, std::array<int64_t, 3>{b, n, w}, ScalarType::Long);
  if (b == 0) return {first, next, depth, words};
  Launch launch(parents);
  tree_build(
      {static_cast<const int32_t*>(dense.const_data_ptr()), first.mutable_data_ptr<int32_t>(),
       next.mutable_data_ptr<int32_t>(), depth.mutable_data_ptr<int32_t>(),
       static_cast<uint64_t*>(words.mutable_data_ptr()), int32_t(b), int32_t(n), int32_t(w)},
      launch.queue);
  return {first, next, depth, words};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("tree_build", TORCH_BOX(&tree_build_op)); }
}  // namespace tokops
