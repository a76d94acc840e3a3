#include "speculative/kv_compact.h"

#include <cstring>

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kBytesPerTask = 64 << 10;
constexpr int kMoves = 64;  // of one block: found once for all pools and heads

// Byte offsets in the head of a pool.
struct Move {
  int64_t from, to;
};

// The moves of rows [first, last) of a sequence that change anything.
int moves_of(const KvCompact& p, int64_t b, int64_t list, int first, int last, Move* moves) {
  const int64_t base = p.base[b * p.base_b + list * p.base_h];
  int count = 0;
  for (int j = first; j < last; ++j) {
    const int64_t row = p.rows[b * p.n + j];
    if (row == j) continue;
    const Move m{row_at(p, b, list, base + row), row_at(p, b, list, base + j)};
    if (m.from >= 0 && m.to >= 0) moves[count++] = m;
  }
  return count;
}

// In order: a row is written only after it was read. The rows of the head behind are on their way.
template <int kBytes>
void move_rows(const Move* moves, int count, char* head, const char* next, int bytes) {
  const size_t size = size_t(kBytes ? kBytes : bytes);
  for (int k = 0; k < count; ++k) {
    if (next)
      for (size_t line = 0; line < size; line += 64) {
        __builtin_prefetch(next + moves[k].from + line);
        __builtin_prefetch(next + moves[k].to + line, 1);
      }
    std::memcpy(head + moves[k].to, head + moves[k].from, size);
  }
}

void move_rows_of(const Move* moves, int count, char* head, const char* next, int bytes) {
  switch (bytes) {
    case 64:
      return move_rows<64>(moves, count, head, next, bytes);
    case 128:
      return move_rows<128>(moves, count, head, next, bytes);
    case 256:
      return move_rows<256>(moves, count, head, next, bytes);
    case 512:
      return move_rows<512>(moves, count, head, next, bytes);
    default:
      return move_rows<0>(moves, count, head, next, bytes);
  }
}

void kv_compact_copy(const KvCompact& p, const Queue& q) {
  const int64_t lists = p.table_h ? p.H : 1, heads = p.table_h ? 1 : p.H;
  const int64_t each = p.count * heads;  // heads that move alike
  q.parallel(p.B * lists * each, kBytesPerTask / (int64_t(p.row_bytes) * p.n + 1) + 1,
             [&](int64_t i0, int64_t i1) {
               Move moves[kMoves];
               for (int64_t i = i0; i < i1;) {
                 const int64_t at = i / each, b = at / lists, list = at % lists;
                 const int64_t end = (at + 1) * each < i1 ? (at + 1) * each : i1;
                 const auto head = [&](int64_t k) {
                   return p.pools[k % each / heads] + k % each % heads * p.head;
                 };
                 const int live = live_rows(p, b);
                 for (int j = 0; j < live; j += kMoves) {
                   const int last = j + kMoves < live ? j + kMoves : live;
                   const int count = moves_of(p, b, list, j, last, moves);
                   for (int64_t k = i; k < end; ++k)
                     move_rows_of(moves, count, head(k), k + 1 < end ? head(k + 1) : nullptr,
                                  p.row_bytes);
                 }
                 i = end;
               }
             });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_compact, kv_compact_copy, KvCompact)
