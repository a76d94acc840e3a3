// Quantises new keys and values into packed pools.
#pragma once
#include "kvcache/codec.h"

namespace tokops {

// New rows [B, T, Hkv, D] with D contiguous; strides in bytes.
struct NewRows {
  const char* x;
  int64_t b, t, h;
};

struct KvAppend {
  PackedPool pools[2];  // K and V, behind one table
  NewRows rows[2];
  PageTable table;
  const int32_t* seq_lens;  // [B] or [B, Hkv]: lens_h = 0 where the heads share
  int64_t lens_b, lens_h;
  const int32_t *q_lens, *starts;  // [B] or null
  int32_t B, T, Hkv;
  DType dtype;  // of the rows
};

// kv_append.isa.cpp on the CPU, .cu on CUDA. Slots outside the table, pages outside the pool and
// groups that do not begin at a multiple of their size are skipped, so that bad values on a device
// never touch other memory.
void kv_append(const KvAppend& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

// Rows to write and the slot of the first.
struct Span {
  int64_t first, rows;
};
TOKOPS_HD Span append_span(const KvAppend& p, int64_t b, int64_t h) {
  const int64_t length = p.seq_lens[b * p.lens_b + h * p.lens_h];
  const int64_t rows = p.q_lens ? p.q_lens[b] : length > 0 ? p.T : 0;
  return {length - rows, rows};
}

// The slot of group i of the rows of (b, h), or -1 where there is no such group.
TOKOPS_HD int64_t append_group_slot(const KvAppend& p, const PackedPool& pool, int64_t b, int64_t h,
                                    int64_t i) {
  const Span s = append_span(p, b, h);
  const int64_t slot = s.first + i * pool.group;
  return (i + 1) * pool.group <= s.rows && slot % pool.group == 0 ? slot : -1;
}

TOKOPS_HD const char* new_row(const NewRows& r, int64_t b, int64_t t, int64_t h) {
  return r.x + b * r.b + t * r.t + h * r.h;
}

}  // namespace
}  // namespace tokops
