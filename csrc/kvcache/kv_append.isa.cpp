#include "kvcache/kv_append.h"

#include "common/isa.h"
#include "kvcache/rows.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 16 << 10;

// Row t of (b, h): token and head geometry, and full pools.
void append_row(const KvAppend& p, int side, int64_t b, int64_t t, int64_t h) {
  const PackedPool& pool = p.pools[side];
  const Span span = append_span(p, b, h);
  if (t >= span.rows) return;
  const int64_t slot = span.first + t, page = page_of(p.table, pool, b, h, slot);
  if (page < 0) return;
  const char* from = new_row(p.rows[side], b, t, h);
  if (pool.kind == CodecKind::full) {
    memcpy(row_of(pool, page, h, slot), from, size_t(row_bytes(pool)));
    return;
  }
  float x[kMaxHeadDim];
  load_floats(p.dtype, from, pool.D, x);
  quantise_row(pool, page, h, slot, x);
}

// Lowest and highest element per dimension over the rows of a group that are no padding; 0 where
// all are.
void channel_ranges(const KvAppend& p, int side, int64_t b, int64_t t0, int64_t h, int pads,
                    float* lo, float* hi) {
  const int D = p.pools[side].D, group = p.pools[side].group;
  for (int d = 0; d < D; ++d) lo[d] = hi[d] = 0;
  float x[kMaxHeadDim];
  for (int j = pads; j < group; ++j) {
    load_floats(p.dtype, new_row(p.rows[side], b, t0 + j, h), D, x);
    clamp_inputs(x, D);
    if (j == pads) {
      memcpy(lo, x, sizeof(float) * size_t(D));
      memcpy(hi, x, sizeof(float) * size_t(D));
    }
    for (int d = 0; d < D; ++d) {
      lo[d] = x[d] < lo[d] ? x[d] : lo[d];
      hi[d] = x[d] > hi[d] ? x[d] : hi[d];
    }
  }
}

// Group i of the rows of (b, h): channel geometry. The rows are read twice, from the cache the
// second time.
void append_group(const KvAppend& p, int side, int64_t b, int64_t i, int64_t h) {
  const PackedPool& pool = p.pools[side];
  const int64_t slot = append_group_slot(p, pool, b, h, i), t0 = i * pool.group;
  const int64_t page = page_of(p.table, pool, b, h, slot);
  if (page < 0) return;
  const int64_t before = p.starts ? p.starts[b] - slot : 0;
  const int pads = before < 0 ? 0 : before < pool.group ? int(before) : pool.group;
  float lo[kMaxHeadDim], hi[kMaxHeadDim], x[kMaxHeadDim];
  channel_ranges(p, side, b, t0, h, pads, lo, hi);
  RowGrid g;
  for (int d = 0; d < pool.D; ++d) {
    const Grid grid = grid_of(pool.kind, is_symmetric(pool), pool.scale_dtype, lo[d], hi[d]);
    store_grid(pool, page, h, scale_row(pool, slot), d, grid);
    g.scale[d] = grid.scale;
    g.zero[d] = grid.zero;
  }
  for (int j = 0; j < pool.group; ++j) {
    load_floats(p.dtype, new_row(p.rows[side], b, t0 + j, h), pool.D, x);
    clamp_inputs(x, pool.D);
    encode_row(pool, x, g, row_of(pool, page, h, slot + j));
  }
}

void kv_append_copy(const KvAppend& p, const Queue& q) {
  for (int side = 0; side < 2; ++side) {
    const PackedPool& pool = p.pools[side];
    const bool channel = pool.kind != CodecKind::full && pool.geometry == Geometry::channel;
    const int64_t step = channel ? pool.group : 1, steps = p.T / step;
    q.parallel(p.B * steps * p.Hkv, kElementsPerTask / (step * pool.D) + 1,
               [&](int64_t i0, int64_t i1) {
                 for (int64_t i = i0; i < i1; ++i) {
                   const int64_t b = i / (steps * p.Hkv), t = i / p.Hkv % steps, h = i % p.Hkv;
                   channel ? append_group(p, side, b, t, h) : append_row(p, side, b, t, h);
                 }
               });
  }
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_append, kv_append_copy, KvAppend)
