#include "kvcache/kv_transfer.h"
#include "kvcache/rows.cuh"

namespace tokops {
namespace {

// One warp per token that moves, K in the first half of the grid's rows and V in the second.
__global__ void transfer_kernel(KvTransfer p) {
  const int64_t rows = int64_t(p.B) * p.Hkv * p.n, w = row_of_warp();
  if (w >= 2 * rows) return;
  const int side = w >= rows;
  const int64_t i = w - side * rows, j = i % p.n, h = i / p.n % p.Hkv, b = i / p.n / p.Hkv;
  const PackedPool &from = p.from[side], &to = p.to[side];
  const int lane = threadIdx.x % 32;
  Move m;
  if (!move_of(p, side, b, h, j, &m)) return;
  if (p.verbatim[side]) {
    const char* source = row_of(from, m.from_page, h, m.from_slot);
    char* target = row_of(to, m.to_page, h, m.to_slot);
    for (int at = lane; at < row_bytes(to); at += 32) target[at] = source[at];
    for (int c = lane; c < moved_columns(to); c += 32)
      copy_grid(from, m.from_page, m.from_slot, to, m.to_page, m.to_slot, h, c);
    return;
  }
  float x[kSlices];
#pragma unroll
  for (int s = 0; s < kSlices; ++s)
    x[s] =
        lane + 32 * s < to.D ? element_of(from, m.from_page, h, m.from_slot, lane + 32 * s) : 0.f;
  quantise_row(to, m.to_page, h, m.to_slot, x);
}

}  // namespace

void kv_transfer(const KvTransfer& p, const Queue& q) {
  launch(transfer_kernel, row_blocks(2 * int64_t(p.B) * p.Hkv * p.n), dim3(kRowThreads), 0, q, p);
}

}  // namespace tokops
