#include "kvcache/kv_append.h"
#include "kvcache/rows.cuh"

namespace tokops {
namespace {

// One warp per row: token and head geometry, and full pools.
__global__ void append_rows_kernel(KvAppend p, int side) {
  const int64_t i = row_of_warp();
  if (i >= int64_t(p.B) * p.T * p.Hkv) return;
  const int64_t h = i % p.Hkv, t = i / p.Hkv % p.T, b = i / p.Hkv / p.T;
  const PackedPool& pool = p.pools[side];
  const Span span = append_span(p, b, h);
  if (t >= span.rows) return;
  const int64_t slot = span.first + t, page = page_of(p.table, pool, b, h, slot);
  if (page < 0) return;
  const char* from = new_row(p.rows[side], b, t, h);
  const int lane = threadIdx.x % 32;
  float x[kSlices];
#pragma unroll
  for (int s = 0; s < kSlices; ++s)
    x[s] = lane + 32 * s < pool.D ? element_at(p.dtype, from, lane + 32 * s) : 0.f;
  quantise_row(pool, page, h, slot, x);
}

// One block per group of tokens and (sequence, head), one thread per dimension: channel geometry.
// The rows are read twice, from the cache the second time.
__global__ void append_groups_kernel(KvAppend p, int side) {
  const PackedPool& pool = p.pools[side];
  const int groups = p.T / pool.group;
  const int64_t h = blockIdx.x % p.Hkv, i = blockIdx.x / p.Hkv % groups,
                b = blockIdx.x / p.Hkv / groups;
  const int64_t slot = append_group_slot(p, pool, b, h, i), t0 = i * pool.group;
  const int64_t page = page_of(p.table, pool, b, h, slot);
  if (page < 0) return;
  const int64_t start = p.starts ? p.starts[b] : 0;
  const bool symmetric = is_symmetric(pool);
  const int d = threadIdx.x;
  const auto element = [&](int j) {
    return d < pool.D ? clamp_input(element_at(p.dtype, new_row(p.rows[side], b, t0 + j, h), d))
                      : 0.f;
  };
  float lo = INFINITY, hi = -INFINITY;
  for (int j = 0; j < pool.group; ++j) {
    if (slot + j < start) continue;
    const float x = element(j);
    lo = x < lo ? x : lo;
    hi = x > hi ? x : hi;
  }
  if (!(lo <= hi)) lo = hi = 0;  // padding alone
  const Grid g = grid_of(pool.kind, symmetric, pool.scale_dtype, lo, hi);
  if (d < pool.D) store_grid(pool, page, h, scale_row(pool, slot), d, g);
  for (int j = 0; j < pool.group; ++j) {
    const unsigned code = d < pool.D ? code_for(pool.kind, symmetric, element(j), g) : 0;
    store_slice(bits_of(pool.kind), row_of(pool, page, h, slot + j), d / 32, pool.D - d / 32 * 32,
                code);
  }
}

}  // namespace

void kv_append(const KvAppend& p, const Queue& q) {
  for (int side = 0; side < 2; ++side) {
    const PackedPool& pool = p.pools[side];
    if (pool.kind != CodecKind::full && pool.geometry == Geometry::channel) {
      const int64_t blocks = int64_t(p.B) * (p.T / pool.group) * p.Hkv;
      if (blocks > 0)
        launch(append_groups_kernel, dim3(unsigned(blocks)), dim3((pool.D + 31) / 32 * 32), 0, q, p,
               side);
    } else {
      launch(append_rows_kernel, row_blocks(int64_t(p.B) * p.T * p.Hkv), dim3(kRowThreads), 0, q, p,
             side);
    }
  }
}

}  // namespace tokops
