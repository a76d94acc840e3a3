#include "common/cuda.cuh"
#include "speculative/kv_compact.h"

namespace tokops {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 8;     // rows that are read before the first of them is written
constexpr int kPlaces = 128;  // rows whose places are looked up at a time

// One block per pool and sequence (and head, where heads have tables of their own). Places are
// looked up once; then a thread moves one unit of all rows, in order. Threads do not meet there,
// and since rows[j] >= j ascends, a thread writes only what it has read.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    kv_compact_kernel(const __grid_constant__ KvCompact p, int lists) {
  __shared__ int64_t from[kPlaces], to[kPlaces];
  char* pool = p.pools[blockIdx.y];
  const int b = int(blockIdx.x) / lists, list = int(blockIdx.x) % lists;
  const int units = p.row_bytes / int(sizeof(Unit)), heads = lists > 1 ? 1 : p.H;
  const int64_t base = p.base[b * p.base_b + list * p.base_h];
  const int live = live_rows(p, b);
  for (int first = 0; first < live; first += kPlaces) {
    const int count = live - first < kPlaces ? live - first : kPlaces;
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += kThreads) {
      const int row = p.rows[int64_t(b) * p.n + first + j];
      const bool moves = row != first + j;
      from[j] = moves ? row_at(p, b, list, base + row) : -1;
      to[j] = moves ? row_at(p, b, list, base + first + j) : -1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * units; i += kThreads) {
      const int64_t shift = (lists > 1 ? 0 : i / units * p.head) + i % units * int(sizeof(Unit));
      for (int j0 = 0; j0 < count; j0 += kAhead) {
        Unit values[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (j0 + k < count && from[j0 + k] >= 0)
            values[k] = *reinterpret_cast<const Unit*>(pool + from[j0 + k] + shift);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (j0 + k < count && from[j0 + k] >= 0 && to[j0 + k] >= 0)
            *reinterpret_cast<Unit*>(pool + to[j0 + k] + shift) = values[k];
      }
    }
  }
}

}  // namespace

void kv_compact(const KvCompact& p, const Queue& q) {
  const int lists = p.table_h ? p.H : 1;
  const dim3 grid(unsigned(p.B * lists), unsigned(p.count));
  dispatch_int<16, 4, 2, 1>(p.unit, [&](auto bytes) {
    launch(kv_compact_kernel<Pack<uint8_t, bytes>>, grid, dim3(kThreads), 0, q, p, lists);
  });
}

}  // namespace tokops
