#include "attention/paged_append.h"

#include <cstring>

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kBytesPerTask = 64 << 10;

void paged_append_copy(const PagedAppend& p, const Queue& q) {
  const PagePools& pool = p.pools;
  const size_t bytes = size_t(pool.row_bytes);
  q.parallel(int64_t(pool.B) * p.T, kBytesPerTask / (2 * bytes * pool.Hkv + 1) + 1,
             [&](int64_t i0, int64_t i1) {
               for (int64_t i = i0; i < i1; ++i) {
                 const int64_t b = i / p.T, t = i % p.T;
                 for (int64_t h = 0; h < pool.Hkv; ++h) {
                   const int64_t to = append_position(p, b, h, t), page = page_of(pool, b, h, to);
                   if (page < 0) continue;
                   std::memcpy(pool.k + k_offset(pool, page, h, to),
                               p.new_k + b * p.new_k_b + t * p.new_k_t + h * p.new_k_h, bytes);
                   std::memcpy(pool.v + v_offset(pool, page, h, to),
                               p.new_v + b * p.new_v_b + t * p.new_v_t + h * p.new_v_h, bytes);
                 }
               }
             });
}

// One (sequence, head) at a time and in order: a row is written only after it was read.
void paged_gather_rows_copy(const PagedGather& p, const Queue& q) {
  const PagePools& pool = p.pools;
  const size_t bytes = size_t(pool.row_bytes);
  q.parallel(int64_t(pool.B) * pool.Hkv, kBytesPerTask / (2 * bytes * p.n + 1) + 1,
             [&](int64_t i0, int64_t i1) {
               for (int64_t i = i0; i < i1; ++i) {
                 const int64_t b = i / pool.Hkv, h = i % pool.Hkv;
                 const int64_t base = p.base[b * p.base_b + h * p.base_h];
                 const int64_t live = p.counts && p.counts[b] < p.n ? p.counts[b] : p.n;
                 for (int64_t j = 0; j < live; ++j) {
                   const int64_t from = base + p.rows[b * p.n + j], to = base + j;
                   const int64_t source = page_of(pool, b, h, from),
                                 target = page_of(pool, b, h, to);
                   if (from == to || source < 0 || target < 0) continue;
                   std::memcpy(pool.k + k_offset(pool, target, h, to),
                               pool.k + k_offset(pool, source, h, from), bytes);
                   std::memcpy(pool.v + v_offset(pool, target, h, to),
                               pool.v + v_offset(pool, source, h, from), bytes);
                 }
               }
             });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(paged_append, paged_append_copy, PagedAppend)
TOKOPS_ISA_KERNEL(paged_gather_rows, paged_gather_rows_copy, PagedGather)
