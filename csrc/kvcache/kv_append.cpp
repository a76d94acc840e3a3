#include "kvcache/kv_append.h"

#include "kvcache/pools.h"

namespace tokops {
namespace {

using torch::stable::contiguous;
constexpr const char* kOp = "kv_append";

// The new rows with D contiguous; `kept` holds them.
NewRows rows_of(const Tensor& x, Tensor* kept) {
  *kept = x.size(3) <= 1 || x.stride(3) == 1 ? x : contiguous(x);
  const int64_t size = int64_t(x.element_size());
  return {static_cast<const char*>(kept->const_data_ptr()), kept->stride(0) * size,
          kept->stride(1) * size, kept->stride(2) * size};
}

void check_rows(const char* name, const Tensor& x, const Tensor& k, const PackedPool& pool,
                const Tensor& codes, int64_t batch, int64_t heads) {
  check_tensor(kOp, name, x, 4, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, codes);
  check_dtype(x, k.scalar_type(), kOp, name);
  check_shape(kOp, name, x, {batch, k.size(1), heads, pool.D}, "[B, T, Hkv, D]");
  STD_TORCH_CHECK(pool.kind != CodecKind::full || codes.scalar_type() == x.scalar_type(), kOp, ": ",
                  name, " must have the dtype of the full pool ", dtype_name(codes.scalar_type()),
                  ", got ", dtype_name(x.scalar_type()));
}

// With channel geometry a scale is written once, by all of its tokens.
void check_groups(const KvAppend& p) {
  for (const PackedPool& pool : p.pools) {
    if (pool.kind == CodecKind::full || pool.geometry != Geometry::channel) continue;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t h = 0; h < (p.lens_h ? p.Hkv : 1); ++h) {
        const Span s = append_span(p, b, h);
        STD_TORCH_CHECK(s.first % pool.group == 0 && s.rows % pool.group == 0, kOp,
                        ": the first slot and the number of rows must be multiples of the channel "
                        "group ",
                        pool.group, ", got ", s.first, " and ", s.rows, " for sequence ", b);
      }
  }
}

void check_values(const KvAppend& p) {
  check_page_values(
      kOp, {p.table.entries, p.table.b, p.table.h, p.seq_lens, p.lens_b, p.lens_h, p.B, p.Hkv,
            p.pools[0].P, p.table.pages, p.pools[0].pages, p.q_lens, p.starts, p.T});
  check_groups(p);
}

void kv_append_op(const Tensor& k_codes, const Tensor& k_scale, const Tensor& k_zero,
                  const Tensor& v_codes, const Tensor& v_scale, const Tensor& v_zero,
                  const Tensor& block_table, const Tensor& seq_lens, const Tensor& k,
                  const Tensor& v, int64_t k_codec, int64_t v_codec,
                  const std::optional<Tensor>& q_lens, const std::optional<Tensor>& starts) {
  KvAppend p{};
  p.pools[0] = packed_pool(kOp, "k_", k_codes, k_scale, k_zero, k_codec);
  p.pools[1] = packed_pool(kOp, "v_", v_codes, v_scale, v_zero, v_codec);
  check_pair(kOp, "", v_codes, k_codes);
  const Tensor table = contiguous(block_table), lens = contiguous(seq_lens);
  const int64_t heads = check_table(kOp, "block_table", table, k_codes), batch = table.size(0);
  check_tensor(kOp, "seq_lens", lens, table.dim() - 1, {ScalarType::Int}, k_codes);
  std::vector<int64_t> shape = shape_of(table);
  shape.pop_back();
  check_shape(kOp, "seq_lens", lens, shape, table.dim() == 3 ? "[B, Hkv]" : "[B]");
  check_rows("k", k, k, p.pools[0], k_codes, batch, heads);
  check_rows("v", v, k, p.pools[1], v_codes, batch, heads);
  const auto rows = contiguous_or_none(q_lens), begins = contiguous_or_none(starts);
  for (const auto& [name, t] : {std::pair{"q_lens", &rows}, std::pair{"starts", &begins}})
    if (*t) {
      check_tensor(kOp, name, **t, 1, {ScalarType::Int}, k_codes);
      check_shape(kOp, name, **t, {batch}, "[B]");
    }
  Tensor kept_k, kept_v;
  p.rows[0] = rows_of(k, &kept_k);
  p.rows[1] = rows_of(v, &kept_v);
  p.table = page_table(table);
  p.seq_lens = static_cast<const int32_t*>(lens.const_data_ptr());
  p.lens_b = lens.stride(0);
  p.lens_h = lens.dim() == 2 ? 1 : 0;
  p.q_lens = data_or_null<int32_t>(rows);
  p.starts = data_or_null<int32_t>(begins);
  p.B = int32_t(batch);
  p.T = int32_t(k.size(1));
  p.Hkv = int32_t(heads);
  p.dtype = dtype_of(k, kOp, "k");
  if (kOnHost) check_values(p);
  if (k.numel() == 0) return;
  Launch launch(k_codes);
  kv_append(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("kv_append", TORCH_BOX(&kv_append_op)); }
}  // namespace tokops
