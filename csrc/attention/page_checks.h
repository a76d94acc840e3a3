// Checks of pools, tables and lengths, in the words of tokops/attention/logical.py.
#pragma once
#include "common/check.h"

namespace tokops {

inline int64_t kv_heads(const Tensor& pages, const Tensor& table) {
  return table.dim() == 3 ? table.size(1) : pages.size(1);
}
inline int64_t capacity(const Tensor& pages, const Tensor& table) {
  return table.size(table.dim() - 1) * pages.size(2);
}

// Checks a pool against its table and lengths; returns the number of KV heads.
inline int64_t check_pages(const char* op, const char* name, const Tensor& pages, const Tensor& table,
                           const Tensor& seq_lens) {
  check_tensor(op, name, pages, 4, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, table);
  STD_TORCH_CHECK(table.dim() == 2 || table.dim() == 3, op, ": block_table must have 2 or 3 dimensions, got ",
                  table.dim());
  check_tensor(op, "block_table", table, table.dim(), {ScalarType::Int}, pages);
  STD_TORCH_CHECK(seq_lens.dim() == 1 || seq_lens.dim() == 2, op,
                  ": seq_lens must have 1 or 2 dimensions, got ", seq_lens.dim());
  check_tensor(op, "seq_lens", seq_lens, seq_lens.dim(), {ScalarType::Int}, pages);
  STD_TORCH_CHECK(pages.size(3) <= 1 || pages.stride(3) == 1, op, ": ", name,
                  " must have a contiguous last dimension");
  const int64_t heads = kv_heads(pages, table), batch = table.size(0);
  if (table.dim() == 3) {
    STD_TORCH_CHECK(pages.size(1) == 1, op, ": ", name,
                    " must have one head per page when block_table is [B, Hkv, pages], got ", pages.size(1));
    check_shape(op, "seq_lens", seq_lens, {batch, heads}, "[B, Hkv]");
  } else {
    check_shape(op, "seq_lens", seq_lens, {batch}, "[B]");
  }
  return heads;
}

// Tables and lengths as the checks of their values read them: contiguous, on the host.
struct HostPages {
  const int32_t *table, *lens;
  int64_t B, rows_per_b, pages, P, pool;  // rows_per_b: table rows (and lengths) per sequence
  int64_t length(int64_t b, int64_t r) const { return lens[b * rows_per_b + r]; }
};

inline HostPages host_pages(const Tensor& pool, const Tensor& table, const Tensor& lens) {
  return {static_cast<const int32_t*>(table.const_data_ptr()),
          static_cast<const int32_t*>(lens.const_data_ptr()),
          table.size(0),
          table.dim() == 3 ? table.size(1) : 1,
          table.size(table.dim() - 1),
          pool.size(2),
          pool.size(0)};
}

// Table entries of the first `length` positions of table row r of sequence b.
inline void check_entries(const char* op, const HostPages& p, int64_t b, int64_t r, int64_t length) {
  const int32_t* row = p.table + (b * p.rows_per_b + r) * p.pages;
  for (int64_t i = 0; i * p.P < length; ++i)
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < p.pool, op, ": block_table entries must be 0..", p.pool - 1,
                    " for pages in use, got [", row[i], "]");
}

// seq_lens against the table, and the new rows against seq_lens. All tensors contiguous and on the host.
inline void check_page_values(const char* op, const Tensor& pool, const Tensor& table, const Tensor& seq_lens,
                              const std::optional<Tensor>& q_lens, int64_t rows) {
  const HostPages p = host_pages(pool, table, seq_lens);
  const int64_t cap = p.pages * p.P;
  check_range(op, "seq_lens", seq_lens, 0, cap, "0.." + std::to_string(cap) + " (pages * page size)");
  const int32_t* q = q_lens ? static_cast<const int32_t*>(q_lens->const_data_ptr()) : nullptr;
  for (int64_t b = 0; b < p.B; ++b) {
    int64_t least = cap, most = 0;
    for (int64_t r = 0; r < p.rows_per_b; ++r) {
      check_entries(op, p, b, r, p.length(b, r));
      least = p.length(b, r) < least ? p.length(b, r) : least;
      most = p.length(b, r) > most ? p.length(b, r) : most;
    }
    if (q)
      STD_TORCH_CHECK(q[b] >= 0 && q[b] <= rows && q[b] <= least, op, ": q_lens must be 0..", rows,
                      " and at most seq_lens, got ", values_of(*q_lens));
    else
      STD_TORCH_CHECK(least >= rows || most == 0, op, ": seq_lens must count the ", rows,
                      " new tokens (or be 0), got ", values_of(seq_lens));
  }
}

}  // namespace tokops
