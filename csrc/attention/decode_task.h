// What one work item of attention over parts reads: rows of one (sequence, KV head), and the keys
// of a tile. For .isa.cpp files.
#pragma once
#include "attention/parts.h"
#include "attention/tiles.h"

namespace tokops {
namespace {

constexpr int kMaxRows = 64, kMaxDim = 256;

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

// Keys [from, to) of a tile that lie in slots of one page, one behind the other from `slot` on.
struct Stretch {
  int from, to, page, slot;
};

// The keys of a tile.
struct Rows {
  int n, stretches;
  int first, last;  // least and largest logical position
  int pos[kTile];
  Stretch stretch[kTile];
  const uint8_t *k[kTile + 4], *v[kTile + 4];  // filled up behind n with readable rows
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
  const int first = part.first ? part.first[t.b] : 0;
  int begin = part.begin ? part.begin[t.b] : 0;
  begin = begin < 0 ? 0 : begin > len ? len : begin;
  const int64_t low = int64_t(first) + begin, high = int64_t(first) + len;
  const int lo = int(low > t.key_lo ? (low < t.key_hi ? low : t.key_hi) : t.key_lo);
  const int hi = int(high < t.key_hi ? high : t.key_hi);
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
        k_(static_cast<const uint8_t*>(part.k.data) + t.hkv * part.k.h),
        v_(static_cast<const uint8_t*>(part.v.data) + t.hkv * part.v.h) {
    const int64_t head = int64_t(t.b) * p.Hkv + t.hkv;
    if (part.positions) positions_ = part.positions + head * part.pages * part.P;
    if (part.positions && list_) where_ = part.where + head * part.where_len;
    len_ = part.lens[t.b * part.lens_b + t.hkv * part.lens_h];
  }

  // Fills x with the next keys of [at, to), `most` if there are as many, and returns where to go
  // on.
  int find(int at, int to, int most, Rows& x) const {
    x.n = x.stretches = 0;
    Page page{-part_.P, nullptr, nullptr, 0};
    if (list_) {
      for (; at < to && x.n < most; ++at) {
        const int slot = where_ ? where_[list_[at]] - part_.slot_base : list_[at] - first_;
        if (where_ && (slot < 0 || slot >= len_)) continue;
        x.pos[x.n] = list_[at];
        const int from = enter(slot, page);
        x.k[x.n] = page.k + from * part_.k.p;
        x.v[x.n] = page.v + from * part_.v.p;
        extend(page, from, 1, x);
      }
    } else if (at < to) {
      const int count = to - at < most ? to - at : most;
      if (positions_)
        for (int j = 0; j < count; ++j) x.pos[j] = positions_[at + j];
      else
        for (int j = 0; j < count; ++j) x.pos[j] = first_ + at + j;
      add(at, count, page, x);
      at += count;
    }
    if (x.n > 0) complete(x);
    return at;
  }

 private:
  // The page at work: its first slot, its rows of keys and of values, and its place in the pool.
  struct Page {
    int base;
    const uint8_t *k, *v;
    int index;
  };

  // Turns to the page of a slot and returns where the slot is in it.
  int enter(int slot, Page& page) const {
    if (slot < page.base || slot - page.base >= part_.P) {
      const int i = slot / part_.P, index = table_[i];
      page = {i * part_.P, k_ + index * part_.k.n, v_ + index * part_.v.n, index};
    }
    return slot - page.base;
  }

  // The next `count` keys of x are those of a page from slot `from` of it on.
  static void extend(const Page& page, int from, int count, Rows& x) {
    Stretch* last = x.stretch + x.stretches - 1;
    if (x.stretches == 0 || last->page != page.index || last->slot + x.n - last->from != from)
      *(last = x.stretch + x.stretches++) = {x.n, x.n, page.index, from};
    x.n += count;
    last->to = x.n;
  }

  // Slots [slot, slot + count), behind the keys of x.
  void add(int slot, int count, Page& page, Rows& x) const {
    while (count > 0) {
      const int from = enter(slot, page), left = part_.P - from, m = count < left ? count : left;
      const uint8_t *k = page.k + from * part_.k.p, *v = page.v + from * part_.v.p;
      for (int j = 0; j < m; ++j) {
        x.k[x.n + j] = k + j * part_.k.p;
        x.v[x.n + j] = v + j * part_.v.p;
      }
      extend(page, from, m, x);
      slot += m;
      count -= m;
    }
  }

  // What follows from the keys: the range of positions, and readable rows behind them.
  void complete(Rows& x) const {
    for (int j = x.n; j < kTile + 4; ++j) {
      x.k[j] = x.k[x.n - 1];
      x.v[j] = x.v[x.n - 1];
    }
    x.first = x.pos[0];
    x.last = x.pos[x.n - 1];
    for (int j = 0; positions_ && j < x.n; ++j) {
      x.first = x.pos[j] < x.first ? x.pos[j] : x.first;
      x.last = x.pos[j] > x.last ? x.pos[j] : x.last;
    }
  }

  const Part& part_;
  const int32_t *list_, *positions_ = nullptr, *where_ = nullptr;
  int first_, len_;
  const int32_t* table_;
  const uint8_t *k_, *v_;
};

}  // namespace
}  // namespace tokops
