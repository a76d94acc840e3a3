#include "common/cuda.cuh"
#include "speculative/kv_compact.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 8;  // rows that are read before the first of them is written

// One thread per unit of a (pool, sequence, head): it moves that unit of all rows, in order.
// Threads do not meet, and since rows[j] >= j ascends, a thread writes only what it has read.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    kv_compact_kernel(const __grid_constant__ KvCompact p, int units, int64_t total) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t u = i % units, h = i / units % p.H, b = i / units / p.H % p.B;
  char* pool = p.pools[i / units / p.H / p.B];
  const int64_t base = p.base[b * p.base_b + h * p.base_h];
  const int live = live_rows(p, b);
  for (int j0 = 0; j0 < live; j0 += kAhead) {
    Unit values[kAhead];
    int64_t targets[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int j = j0 + k;
      targets[k] = -1;
      if (j >= live) continue;
      const int64_t row = p.rows[b * p.n + j];
      if (row == j) continue;
      const int64_t from = row_at(p, b, h, base + row);
      if (from < 0) continue;
      targets[k] = row_at(p, b, h, base + j);
      values[k] = reinterpret_cast<const Unit*>(pool + from)[u];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (targets[k] >= 0) reinterpret_cast<Unit*>(pool + targets[k])[u] = values[k];
  }
}

}  // namespace

void kv_compact(const KvCompact& p, const Queue& q) {
  const int units = p.row_bytes / p.unit;
  const int64_t total = int64_t(p.count) * p.B * p.H * units;
  const dim3 grid(unsigned((total + kThreads - 1) / kThreads));
  dispatch_int<16, 4, 2, 1>(p.unit, [&](auto bytes) {
    using Unit = Pack<uint8_t, bytes>;
    launch(kv_compact_kernel<Unit>, grid, dim3(kThreads), 0, q, p, units, total);
  });
}

}  // namespace tokops
