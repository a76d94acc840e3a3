// Compaction of all layers at once: of the rows of a draft, those that were accepted move up behind
// the committed ones.
#pragma once
#include "common/backend.h"

namespace tokops {

constexpr int32_t kMostPools = 128;  // of one launch

// Pools [N, H, P, D] of one geometry behind one table. Strides count bytes; D is contiguous.
struct KvCompact {
  char* pools[kMostPools];
  int32_t count;             // of pools
  int64_t page, head, slot;  // strides; head = 0 where the table has a row per head
  int64_t pages_in_pool;
  const int32_t* table;      // [B, (H,) pages]
  int64_t table_b, table_h;  // in entries; table_h = 0 where the heads share
  const int32_t* base;       // [B] or [B, H]
  int64_t base_b, base_h;
  const int32_t *rows, *counts;  // [B, n], [B] or null
  int32_t B, H, P, pages, n;
  int32_t row_bytes, unit;  // unit: 16, 4, 2 or 1, divides every address, stride and row
};

// Position base + rows[j] moves to base + j; what lies outside the table or the pool stays.
void kv_compact(const KvCompact& p,
                const Queue& q);  // kv_compact.isa.cpp on the CPU, .cu on CUDA

namespace {  // headers of .isa.cpp files must not emit shared symbols

// Byte offset of a position's row in the first head of every pool, or -1. Lists are heads that have
// tables of their own, whose pools have one head.
TOKOPS_HD int64_t row_at(const KvCompact& p, int64_t b, int64_t list, int64_t position) {
  if (position < 0 || position >= int64_t(p.pages) * p.P) return -1;
  const uint32_t slot = uint32_t(position) % uint32_t(p.P);
  const int64_t page =
      p.table[b * p.table_b + list * p.table_h + uint32_t(position) / uint32_t(p.P)];
  if (page < 0 || page >= p.pages_in_pool) return -1;
  return page * p.page + slot * p.slot;
}

TOKOPS_HD int live_rows(const KvCompact& p, int64_t b) {
  const int live = p.counts ? p.counts[b] : p.n;
  return live < p.n ? live : p.n;
}

}  // namespace
}  // namespace tokops
