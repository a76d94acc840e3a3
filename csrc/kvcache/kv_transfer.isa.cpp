#include "kvcache/kv_transfer.h"

#include "common/isa.h"
#include "kvcache/rows.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 16 << 10;

void transfer_row(const KvTransfer& p, int side, int64_t b, int64_t h, int64_t j) {
  const PackedPool &from = p.from[side], &to = p.to[side];
  Move m;
  if (!move_of(p, side, b, h, j, &m)) return;
  if (p.verbatim[side]) {
    memcpy(row_of(to, m.to_page, h, m.to_slot), row_of(from, m.from_page, h, m.from_slot),
           size_t(row_bytes(to)));
    for (int c = 0; c < moved_columns(to); ++c)
      copy_grid(from, m.from_page, m.from_slot, to, m.to_page, m.to_slot, h, c);
    return;
  }
  float x[kMaxHeadDim];
  dequantise_row(from, m.from_page, h, m.from_slot, x);
  quantise_row(to, m.to_page, h, m.to_slot, x);
}

void kv_transfer_copy(const KvTransfer& p, const Queue& q) {
  const int64_t elements = p.to[0].D + p.to[1].D;
  q.parallel(int64_t(p.B) * p.Hkv * p.n, kElementsPerTask / elements + 1,
             [&](int64_t i0, int64_t i1) {
               for (int64_t i = i0; i < i1; ++i)
                 for (int side = 0; side < 2; ++side)
                   transfer_row(p, side, i / p.n / p.Hkv, i / p.n % p.Hkv, i % p.n);
             });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_transfer, kv_transfer_copy, KvTransfer)
