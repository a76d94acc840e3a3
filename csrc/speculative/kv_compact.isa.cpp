#include "speculative/kv_compact.h"

#include <cstring>

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kBytesPerTask = 64 << 10;

// One (sequence, head) of one pool, in order: a row is written only after it was read.
void compact_head(const KvCompact& p, char* pool, int64_t b, int64_t h) {
  if (!p.table_h) pool += h * p.head;
  const int64_t base = p.base[b * p.base_b + h * p.base_h];
  const int live = live_rows(p, b);
  for (int j = 0; j < live; ++j) {
    const int64_t row = p.rows[b * p.n + j];
    if (row == j) continue;
    const int64_t from = row_at(p, b, h, base + row), to = row_at(p, b, h, base + j);
    if (from >= 0 && to >= 0) std::memcpy(pool + to, pool + from, size_t(p.row_bytes));
  }
}

void kv_compact_copy(const KvCompact& p, const Queue& q) {
  const int64_t heads = int64_t(p.B) * p.H;
  q.parallel(heads * p.count, kBytesPerTask / (int64_t(p.row_bytes) * p.n + 1) + 1,
             [&](int64_t i0, int64_t i1) {
               for (int64_t i = i0; i < i1; ++i)
                 compact_head(p, p.pools[i / heads], i % heads / p.H, i % p.H);
             });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_compact, kv_compact_copy, KvCompact)
