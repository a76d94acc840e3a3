#include "kvcache/attention_colsum.h"

#include <cmath>
#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "attention_colsum";
constexpr auto kFloats = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};

void check_shapes(const Tensor& q, const Tensor& k) {
  check_tensor(kOp, "q", q, 4, kFloats, q);
  check_tensor(kOp, "k", k, 4, {q.scalar_type()}, q);
  STD_TORCH_CHECK(k.size(0) == q.size(0) && k.size(3) == q.size(3), kOp,
                  ": k must be [B, L, Hkv, D] with B ", q.size(0), " and D ", q.size(3), ", got ",
                  list_of(k.sizes()));
  STD_TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= 256, kOp, ": head dimension must be 1..256, got ",
                  q.size(3));
  const int64_t hq = q.size(2), heads = k.size(2);
  STD_TORCH_CHECK(heads > 0 && hq % heads == 0 && hq / heads >= 1 && hq / heads <= 32, kOp,
                  ": query heads must be 1..32 times the KV heads, got ", hq, " and ", heads);
  STD_TORCH_CHECK(q.size(1) <= k.size(1), kOp, ": k must hold at least the ", q.size(1),
                  " rows of q, got ", k.size(1));
  STD_TORCH_CHECK(k.size(1) * (hq / heads) <= INT32_MAX / 2, kOp,
                  ": k must hold at most 2^30 / G keys, got ", k.size(1));
  const bool rows = q.numel() == 0 || q.size(3) == 1 || q.stride(3) == 1;
  STD_TORCH_CHECK(rows, kOp, ": q must have a contiguous last dimension");
  const bool keys = k.numel() == 0 || k.size(3) == 1 || k.stride(3) == 1;
  STD_TORCH_CHECK(keys, kOp, ": k must have a contiguous last dimension");
}

// Whether every row of x begins at a multiple of 16 bytes and is whole 16-byte pieces.
bool rows_aligned(const Tensor& x) {
  const int64_t size = int64_t(x.element_size());
  bool ok = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(3) * size % 16 == 0;
  for (int i = 0; i < 3; ++i) ok = ok && x.stride(i) * size % 16 == 0;
  return ok;
}

std::tuple<Tensor, Tensor> attention_colsum_op(const Tensor& q, const Tensor& k,
                                               const std::optional<Tensor>& lse,
                                               const std::optional<Tensor>& starts,
                                               std::optional<double> scale,
                                               std::optional<double> softcap, int64_t first_row) {
  check_shapes(q, k);
  const int64_t b = q.size(0), t = q.size(1), hq = q.size(2), d = q.size(3), l = k.size(1),
                heads = k.size(2);
  if (lse) {
    check_tensor(kOp, "lse", *lse, 3, {ScalarType::Float}, q);
    check_shape(kOp, "lse", *lse, {b, t, hq}, "[B, T, Hq]");
  }
  const std::optional<Tensor> begin = contiguous_or_none(starts);
  if (begin) {
    check_tensor(kOp, "starts", *begin, 1, {ScalarType::Int}, q);
    check_shape(kOp, "starts", *begin, {b}, "[B]");
    if (kOnHost) check_range(kOp, "starts", *begin, 0, l, "0.." + std::to_string(l));
  }
  check_softcap(kOp, softcap);
  STD_TORCH_CHECK(first_row >= 0 && first_row <= t, kOp, ": first_row must be 0..", t, ", got ",
                  first_row);
  Tensor acc = torch::stable::new_empty(q, std::array<int64_t, 3>{b, heads, l}, ScalarType::Float);
  Tensor found =
      lse ? torch::stable::new_empty(q, std::array<int64_t, 1>{0}, ScalarType::Float)
          : torch::stable::new_empty(q, std::array<int64_t, 3>{b, t, hq}, ScalarType::Float);
  if (acc.numel() == 0) return {acc, found};
  const Tensor norms = lse ? torch::stable::contiguous(*lse) : found;
  AttentionColsum p{};
  p.q = q.const_data_ptr(), p.k = k.const_data_ptr();
  p.q_b = q.stride(0), p.q_t = q.stride(1), p.q_h = q.stride(2);
  p.k_b = k.stride(0), p.k_l = k.stride(1), p.k_h = k.stride(2);
  p.starts = data_or_null<int32_t>(begin);
  p.lse = const_cast<float*>(static_cast<const float*>(norms.const_data_ptr()));
  p.acc = acc.mutable_data_ptr<float>();
  p.B = int32_t(b), p.T = int32_t(t), p.L = int32_t(l), p.D = int32_t(d);
  p.Hq = int32_t(hq), p.Hkv = int32_t(heads), p.first_row = int32_t(first_row);
  p.scale = float(scale.value_or(1 / std::sqrt(double(d))));
  p.softcap = float(softcap.value_or(0));
  p.dtype = dtype_of(q, kOp, "q");
  p.find_lse = !lse;
  p.aligned = rows_aligned(q) && rows_aligned(k);
  Launch launch(q);
  attention_colsum(p, launch.queue);
  return {acc, found};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("attention_colsum", TORCH_BOX(&attention_colsum_op)); }
}  // namespace tokops
