// Writes of new keys and values into pages (paged_append), and compaction in place
// (paged_gather_rows).
#pragma once
#include "common/backend.h"

namespace tokops {

// k and v pools [N, Hkv or 1, P, D] behind a table. Strides of pools and rows count bytes; D is
// contiguous.
struct PagePools {
  char *k, *v;
  int64_t k_n, k_h, k_p, v_n, v_h, v_p;  // k_h = v_h = 0 where the table has a row per head
  int64_t pages_in_pool;
  const int32_t* table;      // [B, (Hkv,) pages]
  int64_t table_b, table_h;  // in entries; table_h = 0 where the heads share
  int32_t B, Hkv, P, pages;
  int32_t row_bytes;  // of one token and head
  int32_t unit;       // 16, 4 or 2: divides every address, stride and row
};

struct PagedAppend {
  PagePools pools;
  const char *new_k, *new_v;  // [B, T, Hkv, D]
  int64_t new_k_b, new_k_t, new_k_h, new_v_b, new_v_t, new_v_h;
  const int32_t* seq_lens;  // [B] or [B, Hkv]: lens_h = 0 where the heads share
  int64_t lens_b, lens_h;
  const int32_t* q_lens;  // [B] or null
  int32_t T;
};

struct PagedGather {
  PagePools pools;
  const int32_t* base;  // [B] or [B, Hkv]
  int64_t base_b, base_h;
  const int32_t *rows, *counts;  // [B, n] dense, [B] or null
  int32_t n;
};

// paged_append.isa.cpp on the CPU, .cu on CUDA. Positions outside the table and pages outside the
// pool are skipped, so that bad values on a device never touch other memory.
void paged_append(const PagedAppend& p, const Queue& q);
void paged_gather_rows(const PagedGather& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// The page that holds a position, or -1.
constexpr int64_t page_of(const PagePools& p, int64_t b, int64_t h, int64_t position) {
  if (position < 0 || position >= int64_t(p.pages) * p.P) return -1;
  const int64_t page = p.table[b * p.table_b + h * p.table_h + position / p.P];
  return page >= 0 && page < p.pages_in_pool ? page : -1;
}

// Byte offsets of one row of a page.
constexpr int64_t k_offset(const PagePools& p, int64_t page, int64_t h, int64_t position) {
  return page * p.k_n + h * p.k_h + position % p.P * p.k_p;
}
constexpr int64_t v_offset(const PagePools& p, int64_t page, int64_t h, int64_t position) {
  return page * p.v_n + h * p.v_h + position % p.P * p.v_p;
}

// Where new row t of (b, h) goes, or -1 where there is no such row.
constexpr int64_t append_position(const PagedAppend& p, int64_t b, int64_t h, int64_t t) {
  const int64_t length = p.seq_lens[b * p.lens_b + h * p.lens_h];
  const int64_t rows = p.q_lens ? p.q_lens[b] : length > 0 ? p.T : 0;
  return t < rows ? length - rows + t : -1;
}

}  // namespace
}  // namespace tokops
