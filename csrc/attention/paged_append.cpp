#include "attention/paged_append.h"

#include "attention/pages.h"
#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

// The largest of 16, 4 and 2 that divides everything it was given.
struct Unit {
  uint64_t bits = 0;
  void add(const void* p) { bits |= reinterpret_cast<uintptr_t>(p); }
  void add(int64_t bytes) { bits |= uint64_t(bytes); }
  int32_t size() const { return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2; }
};

// Checks both pools and fills all but `unit`; table must be contiguous and outlive the result.
PagePools pools_of(const char* op, const Tensor& k_pages, const Tensor& v_pages,
                   const Tensor& table, const Tensor& lens, Unit* unit) {
  const int64_t heads =
      check_pool(op, k_pages, "k_pages", table, lens, table.dim() ? table.size(0) : 0);
  check_same_pool(op, v_pages, k_pages);
  const int64_t size = int64_t(k_pages.element_size()), pages = table.size(table.dim() - 1);
  const bool per_head = table.dim() == 3;
  const auto bytes = [&](const Tensor& t, int d) { return t.stride(d) * size; };
  PagePools p{static_cast<char*>(k_pages.mutable_data_ptr()),
              static_cast<char*>(v_pages.mutable_data_ptr()),
              bytes(k_pages, 0),
              per_head ? 0 : bytes(k_pages, 1),
              bytes(k_pages, 2),
              bytes(v_pages, 0),
              per_head ? 0 : bytes(v_pages, 1),
              bytes(v_pages, 2),
              k_pages.size(0),
              static_cast<const int32_t*>(table.const_data_ptr()),
              per_head ? heads * pages : pages,
              per_head ? pages : 0,
              int32_t(table.size(0)),
              int32_t(heads),
              int32_t(k_pages.size(2)),
              int32_t(pages),
              int32_t(k_pages.size(3) * size),
              0};
  unit->add(p.k);
  unit->add(p.v);
  for (const int64_t b : {p.k_n, p.k_h, p.k_p, p.v_n, p.v_h, p.v_p, int64_t(p.row_bytes)})
    unit->add(b);
  return p;
}

// The new rows with D contiguous.
Tensor rows_of(const Tensor& x) { return x.size(3) <= 1 || x.stride(3) == 1 ? x : contiguous(x); }

void paged_append_op(const Tensor& k_pages, const Tensor& v_pages, const Tensor& block_table,
                     const Tensor& seq_lens, const Tensor& k, const Tensor& v,
                     const std::optional<Tensor>& q_lens) {
  constexpr const char* op = "paged_append";
  const Tensor table = contiguous(block_table), lens = contiguous(seq_lens);
  Unit unit;
  PagedAppend p{pools_of(op, k_pages, v_pages, table, lens, &unit)};
  const auto new_rows = contiguous_or_none(q_lens);
  check_tensor(op, "k", k, 4, {k_pages.scalar_type()}, k_pages);
  check_tensor(op, "v", v, 4, {k_pages.scalar_type()}, k_pages);
  const std::vector<int64_t> shape{p.pools.B, k.size(1), p.pools.Hkv, k_pages.size(3)};
  check_shape(op, "k", k, shape, "[B, T, Hkv, D]");
  check_shape(op, "v", v, shape, "[B, T, Hkv, D]");
  if (q_lens) {
    check_tensor(op, "q_lens", *q_lens, 1, {ScalarType::Int}, k_pages);
    check_shape(op, "q_lens", *q_lens, {p.pools.B}, "[B]");
  }

  const Tensor dense_k = rows_of(k), dense_v = rows_of(v);
  const int64_t size = int64_t(k.element_size());
  p.new_k = static_cast<const char*>(dense_k.const_data_ptr());
  p.new_v = static_cast<const char*>(dense_v.const_data_ptr());
  p.new_k_b = dense_k.stride(0) * size;
  p.new_k_t = dense_k.stride(1) * size;
  p.new_k_h = dense_k.stride(2) * size;
  p.new_v_b = dense_v.stride(0) * size;
  p.new_v_t = dense_v.stride(1) * size;
  p.new_v_h = dense_v.stride(2) * size;
  p.seq_lens = static_cast<const int32_t*>(lens.const_data_ptr());
  p.lens_b = lens.stride(0);
  p.lens_h = lens.dim() == 2 ? 1 : 0;
  p.q_lens = data_or_null<int32_t>(new_rows);
  p.T = int32_t(k.size(1));
  if (kOnHost)
    check_page_values(op, {p.pools.table, p.pools.table_b, p.pools.table_h, p.seq_lens, p.lens_b,
                           p.lens_h, p.pools.B, p.pools.Hkv, p.pools.P, p.pools.pages,
                           p.pools.pages_in_pool, p.q_lens, nullptr, p.T});
  if (k.numel() == 0) return;
  unit.add(p.new_k);
  unit.add(p.new_v);
  for (const int64_t b : {p.new_k_b, p.new_k_t, p.new_k_h, p.new_v_b, p.new_v_t, p.new_v_h})
    unit.add(b);
  p.pools.unit = unit.size();
  Launch launch(k_pages);
  paged_append(p, launch.queue);
}

// rows ascending from 0 up, base + rows inside the table, and its entries inside the pool.
void check_gather_values(const char* op, const PagedGather& p) {
  const PagePools& pool = p.pools;
  const int64_t cap = int64_t(pool.pages) * pool.P, heads = p.base_h ? pool.Hkv : 1;
  for (int64_t b = 0; b < pool.B; ++b) {
    const int32_t* row = p.rows + b * p.n;
    const int64_t live = p.counts ? p.counts[b] : p.n;
    STD_TORCH_CHECK(live >= 0 && live <= p.n, op, ": counts must be 0..", p.n, ", got ", live,
                    " for sequence ", b);
    int64_t last = -1;
    for (int64_t j = 0; j < live; last = row[j++])
      STD_TORCH_CHECK(row[j] > last, op, ": rows must be strictly ascending from 0 up");
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t base = p.base[b * p.base_b + h * p.base_h], end = base + last + 1;
      STD_TORCH_CHECK(base >= 0, op, ": base must be >= 0, got ", base, " for sequence ", b);
      STD_TORCH_CHECK(end <= cap, op, ": base + rows must be below ", cap, " (pages * page size)");
      const int32_t* entry = pool.table + b * pool.table_b + h * pool.table_h;
      for (int64_t i = 0; i * pool.P < end; ++i)
        STD_TORCH_CHECK(entry[i] >= 0 && entry[i] < pool.pages_in_pool, op,
                        ": block_table entries must be 0..", pool.pages_in_pool - 1,
                        " for pages in use, sequence ", b, " has others");
    }
  }
}

void paged_gather_rows_op(const Tensor& k_pages, const Tensor& v_pages, const Tensor& block_table,
                          const Tensor& base, const Tensor& rows,
                          const std::optional<Tensor>& counts) {
  constexpr const char* op = "paged_gather_rows";
  const Tensor table = contiguous(block_table), starts = contiguous(base);
  if (table.dim() == 2 || table.dim() == 3) {
    check_tensor(op, "base", base, table.dim() - 1, {ScalarType::Int}, table);
    std::vector<int64_t> shape = shape_of(table);
    shape.pop_back();
    check_shape(op, "base", base, shape, "block_table's shape without its last axis");
  }
  Unit unit;
  PagedGather p{pools_of(op, k_pages, v_pages, table, starts, &unit)};
  check_tensor(op, "rows", rows, 2, {ScalarType::Int}, k_pages);
  STD_TORCH_CHECK(rows.size(0) == p.pools.B, op, ": rows must be [B, n] with B ", p.pools.B,
                  ", got ", list_of(rows.sizes()));
  if (counts) {
    check_tensor(op, "counts", *counts, 1, {ScalarType::Int}, k_pages);
    check_shape(op, "counts", *counts, {p.pools.B}, "[B]");
  }
  const Tensor kept = contiguous(rows);
  const auto live = contiguous_or_none(counts);
  p.base = static_cast<const int32_t*>(starts.const_data_ptr());
  p.base_b = starts.stride(0);
  p.base_h = starts.dim() == 2 ? 1 : 0;
  p.rows = static_cast<const int32_t*>(kept.const_data_ptr());
  p.counts = data_or_null<int32_t>(live);
  p.n = int32_t(kept.size(1));
  p.pools.unit = unit.size();
  if (kOnHost) check_gather_values(op, p);
  if (kept.numel() == 0 || k_pages.numel() == 0) return;
  Launch launch(k_pages);
  paged_gather_rows(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) {
  m.impl("paged_append", TORCH_BOX(&paged_append_op));
  m.impl("paged_gather_rows", TORCH_BOX(&paged_gather_rows_op));
}
}  // namespace tokops
