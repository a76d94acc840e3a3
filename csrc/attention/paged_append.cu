#include "attention/paged_append.h"
#include "common/cuda.cuh"

namespace tokops {
namespace {

constexpr int kAppendThreads = 256;
constexpr int kGatherThreads = 512;

// One thread per unit of a new row: it copies that unit of k and of v.
template <class Unit>
__global__ void paged_append_kernel(PagedAppend p, int units, int64_t total) {
  const int64_t i = int64_t(blockIdx.x) * kAppendThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t u = i % units, row = i / units;
  const int64_t h = row % p.pools.Hkv, t = row / p.pools.Hkv % p.T, b = row / p.pools.Hkv / p.T;
  const int64_t to = append_position(p, b, h, t), page = page_of(p.pools, b, h, to);
  if (page < 0) return;
  const char* k = p.new_k + b * p.new_k_b + t * p.new_k_t + h * p.new_k_h;
  const char* v = p.new_v + b * p.new_v_b + t * p.new_v_t + h * p.new_v_h;
  reinterpret_cast<Unit*>(p.pools.k + k_offset(p.pools, page, h, to))[u] =
      reinterpret_cast<const Unit*>(k)[u];
  reinterpret_cast<Unit*>(p.pools.v + v_offset(p.pools, page, h, to))[u] =
      reinterpret_cast<const Unit*>(v)[u];
}

// One block per (sequence, head), a tile of rows at a time: all are read before any is written. A
// row is written at or before where it was read, so no later tile finds its rows overwritten.
template <class Unit>
__global__ void paged_gather_rows_kernel(PagedGather p, int units) {
  const PagePools& pool = p.pools;
  const int64_t b = blockIdx.x / pool.Hkv, h = blockIdx.x % pool.Hkv;
  const int64_t base = p.base[b * p.base_b + h * p.base_h];
  const int live = p.counts && p.counts[b] < p.n ? p.counts[b] : p.n;
  const int columns = units < kGatherThreads ? units : kGatherThreads,
            tile = kGatherThreads / columns;
  const int column = threadIdx.x % columns, row = threadIdx.x / columns;
  for (int u = column; u - column < units; u += columns) {
    for (int j0 = 0; j0 < live; j0 += tile) {
      const int j = j0 + row;
      int64_t to = base + j, target = -1;
      Unit k, v;
      if (row < tile && j < live && u < units) {
        const int64_t from = base + p.rows[b * p.n + j], source = page_of(pool, b, h, from);
        if (from != to && source >= 0) {
          k = reinterpret_cast<const Unit*>(pool.k + k_offset(pool, source, h, from))[u];
          v = reinterpret_cast<const Unit*>(pool.v + v_offset(pool, source, h, from))[u];
          target = page_of(pool, b, h, to);
        }
      }
      __syncthreads();
      if (target >= 0) {
        reinterpret_cast<Unit*>(pool.k + k_offset(pool, target, h, to))[u] = k;
        reinterpret_cast<Unit*>(pool.v + v_offset(pool, target, h, to))[u] = v;
      }
    }
  }
}

// Calls f with the type that moves `bytes` at once.
template <class F>
void with_unit(int bytes, F&& f) {
  dispatch_int<16, 4, 2>(bytes, [&](auto n) { f(Pack<uint16_t, n / 2>{}); });
}

}  // namespace

void paged_append(const PagedAppend& p, const Queue& q) {
  const int units = p.pools.row_bytes / p.pools.unit;
  const int64_t total = int64_t(p.pools.B) * p.T * p.pools.Hkv * units;
  const dim3 grid(unsigned((total + kAppendThreads - 1) / kAppendThreads));
  with_unit(p.pools.unit, [&](auto unit) {
    launch(paged_append_kernel<decltype(unit)>, grid, dim3(kAppendThreads), 0, q, p, units, total);
  });
}

void paged_gather_rows(const PagedGather& p, const Queue& q) {
  with_unit(p.pools.unit, [&](auto unit) {
    launch(paged_gather_rows_kernel<decltype(unit)>, dim3(unsigned(p.pools.B * p.pools.Hkv)),
           dim3(kGatherThreads), 0, q, p, p.pools.row_bytes / p.pools.unit);
  });
}

}  // namespace tokops
