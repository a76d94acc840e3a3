// What one work item of attention over parts reads: rows of one (sequence, KV head), and the keys
// of a tile. For .isa.cpp files.
#pragma once
#include "attention/parts.h"
#include "attention/tiles.h"

namespace tokops {
namespace {

constexpr int kTile =
    64;  // keys scored before their values are read: a tile of both fits the second cache
constexpr int kMaxRows = 64, kMaxDim = 256;
#if defined(__AVX512F__)
constexpr int kLead = kTile;
#else
constexpr int kLead = 32;  // rows that are called before they are needed
#endif

// Rows of one (sequence, KV head) that read the same keys.
struct Task {
  int b, hkv;
  int t0, g0;           // first new token and first head of the group
  int heads;            // heads of the group: row r is token t0 + r / heads, head g0 + r % heads
  int rows;             // all rows
  int live;             // rows whose token exists; the others are empty
  const int32_t* list;  // selected positions, or null
  int list_size;
  RowView view;
  int key_lo, key_hi;  // logical positions outside which no row sees anything
};

// What a task reads of one part: slots of the part, or entries of the task's list.
struct Range {
  int lo, hi;
  int size() const { return hi - lo; }
};

// Where a key is kept.
struct Spot {
  int page, slot;
};

// The keys of a tile.
struct Rows {
  int n;
  int first, last;  // least and largest logical position
  int pos[kTile];
  Spot spot[kTile];
  const char *k[kTile], *v[kTile];  // v right behind k; filled up behind n with readable rows
};

// First entry of an ascending list that is not below `value`.
int lower_bound(const int32_t* list, int n, int value) {
  int lo = 0;
  while (n > 0) {
    const int half = n / 2;
    if (list[lo + half] < value) {
      lo += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return lo;
}

int round_up(int x, int to) { return (x + to - 1) / to * to; }

Range range_of(const Part& part, const Task& t) {
  if (t.live == 0) return {0, 0};
  int len = part.lens[t.b * part.lens_b + t.hkv * part.lens_h];
  const int cap = part.pages * part.P;
  len = len < 0 ? 0 : len > cap ? cap : len;
  if (part.positions) return {0, t.list && len > 0 ? t.list_size : len};
  const int first = part.first ? part.first[t.b] : 0, begin = part.begin ? part.begin[t.b] : 0;
  int lo = first + (begin > 0 ? begin : 0), hi = first + len;
  lo = lo > t.key_lo ? lo : t.key_lo;
  hi = hi < t.key_hi ? hi : t.key_hi;
  if (hi <= lo) return {0, 0};
  if (!t.list) return {lo - first, hi - first};
  return {lower_bound(t.list, t.list_size, lo), lower_bound(t.list, t.list_size, hi)};
}

// Finds the keys of tiles, one tile after the other.
class Finder {
 public:
  Finder(const PagedDecode& p, const Part& part, const Task& t)
      : part_(part),
        list_(t.list),
        first_(part.first ? part.first[t.b] : 0),
        table_(part.table + t.b * part.table_b + t.hkv * part.table_h),
        k_(static_cast<const char*>(part.k.data) + t.hkv * part.k.h),
        v_(static_cast<const char*>(part.v.data) + t.hkv * part.v.h) {
    const int64_t head = int64_t(t.b) * p.Hkv + t.hkv;
    if (part.positions) positions_ = part.positions + head * part.pages * part.P;
    if (part.positions && list_) where_ = part.where + head * part.where_len;
    len_ = part.lens[t.b * part.lens_b + t.hkv * part.lens_h];
  }

  // Fills x with the next keys of [at, to), none if there are no more; returns where to go on.
  int find(int at, int to, Rows& x) const {
    int slot[kTile];
    x.n = 0;
    if (where_) {
      for (; at < to && x.n < kTile; ++at) {
        const int s = where_[list_[at]] - part_.slot_base;
        if (s < 0 || s >= len_) continue;
        x.pos[x.n] = list_[at];
        slot[x.n++] = s;
      }
    } else {
      x.n = to - at < kTile ? (to > at ? to - at : 0) : kTile;
      for (int j = 0; j < x.n; ++j) {
        x.pos[j] = list_ ? list_[at + j] : positions_ ? positions_[at + j] : first_ + at + j;
        slot[j] = list_ ? x.pos[j] - first_ : at + j;
      }
      at += x.n;
    }
    if (x.n == 0) return at;
    place(slot, x);
    x.first = x.pos[0];
    x.last = x.pos[x.n - 1];
    for (int j = 0; positions_ && j < x.n; ++j) {
      x.first = x.pos[j] < x.first ? x.pos[j] : x.first;
      x.last = x.pos[j] > x.last ? x.pos[j] : x.last;
    }
    return at;
  }

 private:
  void place(const int* slot, Rows& x) const {
    const int P = part_.P;
    for (int j = 0; j < x.n;) {  // one page after the other
      const int index = slot[j] / P, base = index * P, page = table_[index];
      const char* k = k_ + page * part_.k.n;
      const char* v = v_ + page * part_.v.n;
      for (; j < x.n && slot[j] >= base && slot[j] - base < P; ++j) {
        const int s = slot[j] - base;
        x.spot[j] = {page, s};
        x.k[j] = k + s * part_.k.p;
        x.v[j] = v + s * part_.v.p;
      }
    }
    for (int j = x.n; j < kTile; ++j) {
      x.k[j] = x.k[x.n - 1];
      x.v[j] = x.v[x.n - 1];
    }
  }

  const Part& part_;
  const int32_t *list_, *positions_ = nullptr, *where_ = nullptr;
  int first_, len_;
  const int32_t* table_;
  const char *k_, *v_;
};

}  // namespace
}  // namespace tokops
