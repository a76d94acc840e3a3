// Attention of 1..256 new tokens per sequence over pages. Serves paged_decode, paged_decode_scores
// and (with v and out null) paged_scores.
#pragma once
#include <cstddef>

#include "common/backend.h"
#if defined(TOKOPS_CUDA_SIM_KERNEL)
#include <cuda_runtime.h>  // __host__ and __device__, which g++ lacks
#endif

namespace tokops {

enum class ScoreReduce : int { none, max, sum };

struct PagedDecode {
  // q [B, T, Hq, D], out the same; D is contiguous everywhere. Strides count elements.
  const void* q;
  int64_t q_b, q_t, q_h;
  void* out;   // contiguous [B, T, Hq, D]; null: scores only
  float* lse;  // contiguous [B, T, Hq]; null: scores only

  // k and v pools [N, Hkv or 1, P, D]. v is null for scores only.
  const void *k, *v;
  int64_t k_n, k_h, k_p, v_n, v_h,
      v_p;  // strides; k_h = v_h = 0 where the table has a row per head
  int64_t pages_in_pool;

  // table [B, (Hkv,) pages]; lens [B] or [B, Hkv]: head strides are 0 where the heads share.
  const int32_t *table, *seq_lens;
  int64_t table_b, table_h, lens_b, lens_h;

  const int32_t *q_lens, *starts;  // [B] or null
  const int32_t *selected,
      *counts;  // [B, S, Hs, k], [B, S, Hs] contiguous; null: dense; k may be 0
  int32_t sel_rows, sel_heads, sel_k;
  const uint64_t* ancestors;  // [B, T, W] contiguous or null
  int32_t words;

  const float *sink_logit, *log_gamma;  // [Hq] or null
  float scale, softcap;                 // softcap 0: none
  int32_t window;                       // 0: none
  // packed_decode alone: queries and outputs pass through a Hadamard transform; queries may be
  // rounded to 8 bits against integer codes.
  bool rotate, q_int8;

  float* scores;  // contiguous [B, T, Hs, score_len] or null; every element is written
  int64_t score_len;
  ScoreReduce reduce;  // none: Hs = Hq; max, sum: Hs = Hkv

  int32_t B, T, Hq, Hkv, D, P, pages;
  DType dtype;
  void* workspace;
};

// Bytes the kernel needs at p.workspace (16-byte aligned). The CPU reads lengths; CUDA uses shapes
// alone.
size_t paged_decode_workspace(const PagedDecode& p);
void paged_decode(const PagedDecode& p,
                  const Queue& q);  // paged_decode.isa.cpp on the CPU, .cu on CUDA

// ---- Index arithmetic both backends share. ----

// One (sequence, KV head): its lengths and who sees whom.
struct RowView {
  int32_t length;  // cached tokens, the new ones included
  int32_t rows;    // new tokens that exist
  int32_t first;   // position of the first new token
  int32_t start;   // first visible position
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD RowView row_view(const PagedDecode& p, int b, int hkv) {
  RowView v;
  const int32_t cap = p.pages * p.P;
  v.length = p.seq_lens[b * p.lens_b + hkv * p.lens_h];
  v.length = v.length < 0 ? 0 : v.length > cap ? cap : v.length;
  v.rows = p.q_lens ? p.q_lens[b] : (v.length > 0 ? p.T : 0);
  v.rows = v.rows < 0 ? 0 : v.rows > p.T ? p.T : v.rows;
  v.first = v.length - v.rows;
  v.start = p.starts ? p.starts[b] : 0;
  v.start = v.start < 0 ? 0 : v.start;
  return v;
}

TOKOPS_HD int popcount64(uint64_t x) {
#if defined(__CUDA_ARCH__)
  return __popcll(x);
#else
  return __builtin_popcountll(x);
#endif
}

TOKOPS_HD int tree_depth(const PagedDecode& p, int b, int node) {
  const uint64_t* w = p.ancestors + (int64_t(b) * p.T + node) * p.words;
  int n = 0;
  for (int i = 0; i < p.words; ++i) n += popcount64(w[i]);
  return n - 1;
}

// Logical position of new token `row`: by depth in a tree, by order otherwise.
TOKOPS_HD int row_position(const PagedDecode& p, const RowView& v, int b, int row) {
  return v.first + (p.ancestors ? tree_depth(p, b, row) : row);
}

// Whether new token `row` (at logical position `pos`) sees cached position `key`, 0 <= key <
// length.
TOKOPS_HD bool sees(const PagedDecode& p, const RowView& v, int b, int row, int pos, int key) {
  if (row >= v.rows || key < v.start || key >= v.length) return false;
  int key_pos = key;
  if (!p.ancestors) {
    if (key > pos) return false;
  } else if (key >= v.first) {
    const int node = key - v.first;
    const uint64_t* w = p.ancestors + (int64_t(b) * p.T + row) * p.words;
    if (!((w[node / 64] >> (node % 64)) & 1)) return false;
    if (p.window) key_pos = v.first + tree_depth(p, b, node);
  }
  return !p.window || key_pos > pos - p.window;
}

// Keys [lo, hi) outside which no row of [row0, row1) sees anything. A tree may see any new token.
TOKOPS_HD void key_range(const PagedDecode& p, const RowView& v, int b, int row0, int row1, int* lo,
                         int* hi) {
  row1 = row1 < v.rows ? row1 : v.rows;
  *lo = v.start;
  *hi = row1 <= row0 ? v.start : p.ancestors ? v.length : v.first + row1;
  if (p.window && row1 > row0) {
    int least = row_position(p, v, b, row0);
    for (int r = row0 + 1; p.ancestors && r < row1; ++r) {
      const int pos = row_position(p, v, b, r);
      least = pos < least ? pos : least;
    }
    const int reach = least - p.window + 1;
    *lo = reach > *lo ? reach : *lo;
  }
  if (*lo > *hi) *lo = *hi;
}

}  // namespace
}  // namespace tokops
