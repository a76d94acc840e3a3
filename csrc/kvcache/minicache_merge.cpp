#include "kvcache/minicache_merge.h"

#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "minicache_merge";

// Strides of the leading axes, right-aligned; a tensor with more than three of them is dense.
void fill_strides(const Tensor& x, int64_t (&at)[3]) {
  const int64_t lead = x.dim() - 1;
  if (lead > 3) {
    at[2] = x.size(lead);
    return;
  }
  for (int64_t i = 0; i < lead; ++i) at[3 - lead + i] = x.stride(i);
}

using Merged = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Merged minicache_merge_op(const Tensor& prev, const Tensor& cur, double t, double eps) {
  STD_TORCH_CHECK(prev.dim() >= 1 && prev.size(-1) >= 1, kOp,
                  ": x_prev must be [..., D] with D at least 1, got ", list_of(prev.sizes()));
  check_tensor(kOp, "x_prev", prev, prev.dim(),
               {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, prev);
  check_tensor(kOp, "x_cur", cur, prev.dim(), {prev.scalar_type()}, prev);
  check_shape(kOp, "x_cur", cur, shape_of(prev), "the shape of x_prev");
  STD_TORCH_CHECK(t >= 0 && t <= 1, kOp, ": t must be 0..1, got ", t);
  STD_TORCH_CHECK(eps >= 0 && eps < 1, kOp, ": eps must be 0 <= eps < 1, got ", eps);
  const std::vector<int64_t> shape = shape_of(prev), rows(shape.begin(), shape.end() - 1);
  Tensor e = torch::stable::new_empty(prev, shape);
  Tensor norm_prev = torch::stable::new_empty(prev, rows, ScalarType::Half);
  Tensor norm_cur = torch::stable::new_empty(prev, rows, ScalarType::Half);
  Tensor distance = torch::stable::new_empty(prev, rows, ScalarType::Float);
  if (distance.numel() == 0) return {e, norm_prev, norm_cur, distance};
  const bool few = prev.dim() <= 4;  // leading axes that strides can tell
  const auto readable = [&](const Tensor& x) {
    return few && (x.stride(-1) == 1 || x.size(-1) == 1) ? x : torch::stable::contiguous(x);
  };
  const Tensor x = readable(prev), y = readable(cur);
  MinicacheMerge p{};
  fill_strides(x, p.prev_at), fill_strides(y, p.cur_at);
  p.prev = x.const_data_ptr(), p.cur = y.const_data_ptr();
  p.e = e.mutable_data_ptr();
  p.norm_prev = norm_prev.mutable_data_ptr(), p.norm_cur = norm_cur.mutable_data_ptr();
  p.distance = distance.mutable_data_ptr<float>();
  p.rows = distance.numel(), p.D = shape.back();
  p.n2 = !few ? p.rows : rows.empty() ? 1 : rows.back();
  p.n1 = few && rows.size() >= 2 ? rows[rows.size() - 2] : 1;
  p.t = float(t), p.eps = float(eps), p.cos_limit = float(1 - eps);
  p.dtype = dtype_of(prev, kOp, "x_prev");
  Launch launch(prev);
  minicache_merge(p, launch.queue);
  return {e, norm_prev, norm_cur, distance};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("minicache_merge", TORCH_BOX(&minicache_merge_op)); }
}  // namespace tokops
