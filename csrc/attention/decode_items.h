// How attention over parts is cut into work items and put together again. For .isa.cpp files.
#pragma once
#include "attention/paged_decode_item.h"

namespace tokops {
namespace {

constexpr int kChunk =
    256;  // keys of one work item; fixed, so that results do not depend on threads

// The parts of one call, and how its rows are grouped.
struct Grid {
  const PagedDecode& p;
  const Part* parts;
  int n_parts;
  int row_lists, head_lists;  // lists per (sequence, KV head): by token, by query head
  int group_rows, block_rows, blocks;
  int64_t tasks;

  Grid(const PagedDecode& p, const Part* parts, int n_parts)
      : p(p), parts(parts), n_parts(n_parts) {
    const int g = p.Hq / p.Hkv;
    row_lists = p.selected && p.sel_rows > 1 ? p.T : 1;
    head_lists = p.selected && p.sel_heads == p.Hq && g > 1 ? g : 1;
    const int heads = g / head_lists;
    group_rows = p.T / row_lists * heads;
    block_rows = kMaxRows / heads * heads;
    if (block_rows > group_rows) block_rows = group_rows;
    blocks = (group_rows + block_rows - 1) / block_rows;
    tasks = int64_t(p.B) * p.Hkv * row_lists * head_lists * blocks;
  }

  Task task(int64_t i) const {
    const int g = p.Hq / p.Hkv;
    Task t;
    const int block = i % blocks;
    i /= blocks;
    const int head_list = i % head_lists;
    i /= head_lists;
    const int row_list = i % row_lists;
    i /= row_lists;
    t.hkv = i % p.Hkv;
    t.b = i / p.Hkv;
    t.heads = g / head_lists;
    t.g0 = t.hkv * g + head_list * t.heads;
    const int first = block * block_rows;
    t.rows = group_rows - first < block_rows ? group_rows - first : block_rows;
    t.t0 = row_list + first / t.heads;
    t.view = row_view(p, t.b, t.hkv);
    const int tokens = t.view.rows - t.t0;
    t.live = tokens <= 0 ? 0 : tokens * t.heads < t.rows ? tokens * t.heads : t.rows;
    key_range(p, t.view, t.b, t.t0, t.t0 + t.rows / t.heads, &t.key_lo, &t.key_hi);
    t.list = nullptr;
    t.list_size = 0;
    if (p.selected) {
      const int s = p.sel_rows > 1 ? t.t0 : 0;
      const int h = p.sel_heads == p.Hq ? t.g0 : p.sel_heads == p.Hkv ? t.hkv : 0;
      const int64_t at = (int64_t(t.b) * p.sel_rows + s) * p.sel_heads + h;
      t.list = p.selected + at * p.sel_k;
      t.list_size = p.counts ? p.counts[at] : p.sel_k;
      while (!p.counts && t.list_size > 0 && t.list[t.list_size - 1] < 0) --t.list_size;
    }
    return t;
  }

  // Items of one task: at least one, which writes what no key does.
  int items(const Task& t) const {
    int n = 0;
    for (int i = 0; i < n_parts; ++i) n += chunks(range_of(parts[i], t));
    return n > 0 ? n : 1;
  }
  static int chunks(const Range& r) { return (r.size() + kChunk - 1) / kChunk; }

  int64_t partial_floats() const { return int64_t(block_rows) * (p.D + 2); }
};

// What one item leaves behind: per row the running maximum, the sum and the unnormalised output.
struct Partial {
  float* base;
  int dim;
  float* m(int r) const { return base + int64_t(r) * (dim + 2); }
  float* out(int r) const { return m(r) + 2; }
};

size_t decode_workspace(const Grid& x) {
  int64_t items = 0;
  for (int64_t i = 0; i < x.tasks; ++i) items += x.items(x.task(i));
  const int64_t parts = x.p.v && items > x.tasks ? items * x.partial_floats() : 0;
  return size_t(x.tasks + 2) / 2 * 16 + size_t(parts) * 4;
}

// Everything of a task's score rows that no part covers: with one part in order what lies around
// its range, else all of it, before any item runs.
void fill_scores(const PagedDecode& p, const Task& t, int lo, int hi) {
  const bool folded = p.reduce != ScoreReduce::none;
  for (int r = 0; r < t.rows; r += folded ? t.heads : 1) {
    const int heads = folded ? p.Hkv : p.Hq, h = folded ? t.hkv : t.g0 + r % t.heads;
    float* s = p.scores + ((int64_t(t.b) * p.T + t.t0 + r / t.heads) * heads + h) * p.score_len;
    const bool live = r < t.live;
    for (int64_t j = 0; j < (live ? lo : p.score_len) && j < p.score_len; ++j) s[j] = -INFINITY;
    for (int64_t j = hi; live && j < p.score_len; ++j) s[j] = -INFINITY;
  }
}

template <class T>
class Items {
 public:
  Items(const Grid& x, const int64_t* begin, float* partials)
      : x_(x), begin_(begin), partials_(partials) {}

  // Items [i0, i1), on one thread.
  void run(int64_t i0, int64_t i1) const {
    Scratch<T> scratch;
    [[maybe_unused]] const AmxTiles tiles;
    int64_t task = 0;
    for (int64_t n = x_.tasks; n > 1;) {  // the task that owns item i0
      const int64_t half = n / 2;
      if (begin_[task + half] <= i0) task += half;
      n -= half;
    }
    Task t;
    const Part* loaded = nullptr;  // whose queries the scratch holds
    bool called = false;           // the item before has called this one's first rows
    for (int64_t i = i0; i < i1; ++i) {
      if (i == i0 || begin_[task + 1] <= i) {
        while (begin_[task + 1] <= i) ++task;
        t = x_.task(task);
        loaded = nullptr;
        called = false;
      }
      int chunk = int(i - begin_[task]), part = 0;
      Range range{0, 0};
      for (; part < x_.n_parts; ++part) {
        range = range_of(x_.parts[part], t);
        if (chunk < Grid::chunks(range)) break;
        chunk -= Grid::chunks(range);
      }
      const bool empty = part == x_.n_parts;
      Item<T> item(x_.p, x_.parts[empty ? 0 : part], t, scratch);
      if (!empty) {
        if (loaded != &x_.parts[part]) item.load_queries(), called = false;
        loaded = &x_.parts[part];
        const auto end_of = [&](int chunks) {
          const int end = range.lo + (chunk + chunks) * kChunk;
          return end < range.hi ? end : range.hi;
        };
        const bool more = i + 1 < i1 && end_of(1) < range.hi;
        item.run(range.lo + chunk * kChunk, end_of(1), end_of(more ? 2 : 1), called);
        called = more;
      }
      if (x_.p.v) leave(item, scratch, t, i, begin_[task + 1] - begin_[task] == 1);
    }
  }

  // Merges the items of tasks [i0, i1), in order.
  void merge(int64_t i0, int64_t i1) const {
    float out[kMaxDim];
    for (int64_t i = i0; i < i1; ++i) {
      if (begin_[i + 1] - begin_[i] == 1) continue;
      const Task t = x_.task(i);
      for (int r = 0; r < t.rows; ++r) {
        const int token = t.t0 + r / t.heads, head = t.g0 + r % t.heads;
        float m = -INFINITY, l = 0;
        for (int c = 0; c < x_.p.D; ++c) out[c] = 0;
        if (r < t.live) gather(i, r, &m, &l, out);
        Item<T>::finish(x_.p, t.b, token, head, r < t.live, m, l, out);
      }
    }
  }

 private:
  Partial part(int64_t item) const { return {partials_ + item * x_.partial_floats(), x_.p.D}; }

  void gather(int64_t task, int r, float* m, float* l, float* out) const {
    for (int64_t j = begin_[task]; j < begin_[task + 1]; ++j)
      *m = part(j).m(r)[0] > *m ? part(j).m(r)[0] : *m;
    for (int64_t j = begin_[task]; j < begin_[task + 1]; ++j) {
      const float mj = part(j).m(r)[0];
      if (mj == -INFINITY) continue;
      const float w = std::exp(mj - *m);
      *l += w * part(j).m(r)[1];
      const float* from = part(j).out(r);
      for (int c = 0; c < x_.p.D; ++c) out[c] += w * from[c];
    }
  }

  // The result of the only item of a task, or what the merge needs of one among several.
  void leave(const Item<T>& item, Scratch<T>& scratch, const Task& t, int64_t i, bool alone) const {
    const int dim = round_up(x_.p.D, Vec::width);
    for (int r = 0; r < t.rows; ++r) {
      const bool live = r < t.live;
      const float m = live ? scratch.m[r] : -INFINITY, l = live ? scratch.l[r] : 0;
      if (alone) {
        Item<T>::finish(x_.p, t.b, item.token(r), item.head(r), live, m, l, scratch.out + r * dim);
      } else if (live) {
        part(i).m(r)[0] = m;
        part(i).m(r)[1] = l;
        for (int c = 0; c < x_.p.D; ++c) part(i).out(r)[c] = scratch.out[r * dim + c];
      }
    }
  }

  const Grid& x_;
  const int64_t* begin_;
  float* partials_;
};

// Attention over the parts of a grid; the workspace is decode_workspace(x) bytes.
template <class T>
void decode(const Grid& x, const Queue& q) {
  const PagedDecode& p = x.p;
  int64_t* begin = static_cast<int64_t*>(p.workspace);
  begin[0] = 0;
  for (int64_t i = 0; i < x.tasks; ++i) begin[i + 1] = begin[i] + x.items(x.task(i));
  const int64_t items = begin[x.tasks];
  const Items<T> run(x, begin, reinterpret_cast<float*>(begin + (x.tasks + 2) / 2 * 2));
  if (p.scores)
    q.parallel(x.tasks, 1, [&](int64_t a, int64_t b) {
      for (; a < b; ++a) {
        const Task t = x.task(a);
        const Part& only = x.parts[0];
        const bool plain = x.n_parts == 1 && !only.positions && !only.first && !only.k.norm;
        const Range range =
            plain ? range_of(x.parts[0], t) : Range{int(p.score_len), int(p.score_len)};
        fill_scores(p, t, range.lo, range.hi);
      }
    });
  // Below some 100k multiply-adds a second thread costs more than it brings.
  const int64_t work = int64_t(x.block_rows) * p.D * kChunk,
                grain = work < 100000 ? 100000 / work + 1 : 1;
  q.parallel(items, grain, [&](int64_t a, int64_t b) { run.run(a, b); });
  if (p.v && items > x.tasks)
    q.parallel(x.tasks, 1, [&](int64_t a, int64_t b) { run.merge(a, b); });
}

void decode(const Grid& x, const Queue& q) {
  if (x.p.dtype == DType::f32) decode<float>(x, q);
  if (x.p.dtype == DType::bf16) decode<bf16>(x, q);
  if (x.p.dtype == DType::f16) decode<f16>(x, q);
}

}  // namespace
}  // namespace tokops
