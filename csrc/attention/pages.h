// Checks of pools, tables and lengths that the ops over pages share. For bindings.
#pragma once
#include <string>

#include "common/op.h"

namespace tokops {

inline std::string shape_words(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

// Checks a pool [N, Hkv or 1, P, D] against its table and lengths; returns the number of KV heads.
inline int64_t check_pool(const char* op, const Tensor& pages, const char* name,
                          const Tensor& table, const Tensor& lens, int64_t batch) {
  STD_TORCH_CHECK(pages.dim() == 4, op, ": ", name, " must have 4 dimensions, got ", pages.dim());
  dtype_of(pages, op, name);
  check_dtype(table, ScalarType::Int, op, "block_table");
  check_dtype(lens, ScalarType::Int, op, "seq_lens");
  check_device(table, pages, op, "block_table");
  check_device(lens, pages, op, "seq_lens");
  STD_TORCH_CHECK(table.dim() == 2 || table.dim() == 3, op,
                  ": block_table must have 2 or 3 dimensions, got ", table.dim());
  STD_TORCH_CHECK(pages.size(3) <= 1 || pages.stride(3) == 1, op, ": ", name,
                  " must have a contiguous last dimension");
  const bool per_head = table.dim() == 3;
  STD_TORCH_CHECK(!per_head || pages.size(1) == 1, op, ": ", name,
                  " must have one head per page when block_table is [B, Hkv, pages], got ",
                  pages.size(1));
  const int64_t heads = per_head ? table.size(1) : pages.size(1);
  STD_TORCH_CHECK(table.size(0) == batch, op, ": block_table must have ", batch, " rows, got ",
                  table.size(0));
  STD_TORCH_CHECK(lens.dim() == (per_head ? 2 : 1) && lens.size(0) == batch &&
                      (!per_head || lens.size(1) == heads),
                  op, ": seq_lens must be ", per_head ? "[B, Hkv]" : "[B]",
                  " like block_table, got ", shape_words(lens));
  STD_TORCH_CHECK(table.size(-1) * pages.size(2) < INT32_MAX, op,
                  ": pages * page size must be below 2^31, got ", table.size(-1) * pages.size(2));
  return heads;
}

inline void check_same_pool(const char* op, const Tensor& v, const Tensor& k) {
  check_dtype(v, k.scalar_type(), op, "v_pages");
  check_device(v, k, op, "v_pages");
  bool same = v.dim() == 4;
  for (int64_t i = 0; same && i < 4; ++i) same = v.size(i) == k.size(i);
  STD_TORCH_CHECK(same, op, ": v_pages must have the shape of k_pages ", shape_words(k), ", got ",
                  shape_words(v));
  STD_TORCH_CHECK(v.size(3) <= 1 || v.stride(3) == 1, op,
                  ": v_pages must have a contiguous last dimension");
}

// Index values on the host, as laid out in PagedDecode.
struct PageValues {
  const int32_t* table;  // or null: lengths alone
  int64_t table_b, table_h;
  const int32_t* lens;
  int64_t lens_b, lens_h;
  int64_t B, Hkv, P, pages, pages_in_pool;
  const int32_t *q_lens, *starts;  // or null
  int64_t rows;                    // new tokens where q_lens is null; 0: none asked for
};

inline void check_page_values(const char* op, const PageValues& x) {
  const int64_t cap = x.pages * x.P, heads = x.lens_h || x.table_h ? x.Hkv : 1;
  for (int64_t b = 0; b < x.B; ++b) {
    int64_t least = cap, most = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t n = x.lens[b * x.lens_b + h * x.lens_h];
      STD_TORCH_CHECK(n >= 0 && n <= cap, op, ": seq_lens must be 0..", cap,
                      " (pages * page size), got ", n, " for sequence ", b);
      least = n < least ? n : least;
      most = n > most ? n : most;
      const int32_t* row = x.table + b * x.table_b + h * x.table_h;
      bool inside = true;
      const int64_t used = x.table && x.P ? (n + x.P - 1) / x.P : 0;
      for (int64_t i = 0; i < used; ++i) inside &= row[i] >= 0 && row[i] < x.pages_in_pool;
      STD_TORCH_CHECK(inside, op, ": block_table entries must be 0..", x.pages_in_pool - 1,
                      " for pages in use, sequence ", b, " has others");
    }
    STD_TORCH_CHECK(x.q_lens || least >= x.rows || most == 0, op, ": seq_lens must count the ",
                    x.rows, " new tokens (or be 0), got ", least, " for sequence ", b);
    if (x.q_lens)
      STD_TORCH_CHECK(x.q_lens[b] >= 0 && x.q_lens[b] <= x.rows && x.q_lens[b] <= least, op,
                      ": q_lens must be 0..", x.rows, " and at most seq_lens, got ", x.q_lens[b],
                      " for sequence ", b);
    if (x.starts) STD_TORCH_CHECK(x.starts[b] >= 0, op, ": starts must be >= 0, got ", x.starts[b]);
  }
}

}  // namespace tokops
