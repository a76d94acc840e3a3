// The copy for AMX is asked for by the word __AMX_BF16__ (cmake/TokopsIsa.cmake): its products are
// in tiles_amx.h.
#include "attention/paged_decode_item.h"
#include "common/isa.h"

namespace tokops {
namespace {

constexpr int kChunk =
    256;  // keys of one work item; fixed, so that results do not depend on threads

struct Grid {
  int row_lists, head_lists;  // lists per (sequence, KV head): by token, by query head
  int group_rows, block_rows, blocks;
  int64_t tasks;
};

Grid grid_of(const PagedDecode& p) {
  const int g = p.Hq / p.Hkv;
  Grid x;
  x.row_lists = p.selected && p.sel_rows > 1 ? p.T : 1;
  x.head_lists = p.selected && p.sel_heads == p.Hq && g > 1 ? g : 1;
  const int heads = g / x.head_lists;
  x.group_rows = p.T / x.row_lists * heads;
  x.block_rows = kMaxRows / heads * heads;
  if (x.block_rows > x.group_rows) x.block_rows = x.group_rows;
  x.blocks = (x.group_rows + x.block_rows - 1) / x.block_rows;
  x.tasks = int64_t(p.B) * p.Hkv * x.row_lists * x.head_lists * x.blocks;
  return x;
}

Task task_of(const PagedDecode& p, const Grid& x, int64_t i) {
  const int g = p.Hq / p.Hkv;
  Task t;
  const int block = i % x.blocks;
  i /= x.blocks;
  const int head_list = i % x.head_lists;
  i /= x.head_lists;
  const int row_list = i % x.row_lists;
  i /= x.row_lists;
  t.hkv = i % p.Hkv;
  t.b = i / p.Hkv;
  t.heads = g / x.head_lists;
  t.g0 = t.hkv * g + head_list * t.heads;
  const int first = block * x.block_rows;
  t.rows = x.group_rows - first < x.block_rows ? x.group_rows - first : x.block_rows;
  t.t0 = row_list + first / t.heads;
  t.view = row_view(p, t.b, t.hkv);
  const int tokens = t.view.rows - t.t0;
  t.live = tokens <= 0 ? 0 : tokens * t.heads < t.rows ? tokens * t.heads : t.rows;
  key_range(p, t.view, t.b, t.t0, t.t0 + t.rows / t.heads, &t.lo, &t.hi);
  t.list = nullptr;
  if (p.selected) {
    const int s = p.sel_rows > 1 ? t.t0 : 0;
    const int h = p.sel_heads == p.Hq ? t.g0 : p.sel_heads == p.Hkv ? t.hkv : 0;
    const int64_t at = (int64_t(t.b) * p.sel_rows + s) * p.sel_heads + h;
    t.list = p.selected + at * p.sel_k;
    int n = p.sel_k;
    if (p.counts)
      n = p.counts[at];
    else
      while (n > 0 && t.list[n - 1] < 0) --n;
    const int hi = lower_bound(t.list, n, t.hi);
    t.lo = lower_bound(t.list, n, t.lo);
    t.hi = hi > t.lo ? hi : t.lo;
  }
  return t;
}

int chunks_of(const Task& t) {
  const int n = t.live > 0 ? t.hi - t.lo : 0;
  return n > 0 ? (n + kChunk - 1) / kChunk : 1;
}

// What one item leaves behind: per row the running maximum, the sum and the unnormalised output.
struct Partial {
  float* base;
  int dim;
  float* m(int r) const { return base + int64_t(r) * (dim + 2); }
  float* out(int r) const { return m(r) + 2; }
};

int64_t partial_floats(const PagedDecode& p, const Grid& x) {
  return int64_t(x.block_rows) * (p.D + 2);
}

// Item numbers at which each task begins, then the total.
void count_items(const PagedDecode& p, const Grid& x, int64_t* begin) {
  begin[0] = 0;
  for (int64_t i = 0; i < x.tasks; ++i) begin[i + 1] = begin[i] + chunks_of(task_of(p, x, i));
}

// Everything of the score rows that no key range covers.
void fill_scores(const PagedDecode& p, const Task& t, bool first, bool last) {
  const int lo = t.live ? t.lo : 0, hi = t.live ? t.hi : 0;
  for (int r = 0; r < t.rows; r += p.reduce == ScoreReduce::none ? 1 : t.heads) {
    const int heads = p.reduce == ScoreReduce::none ? p.Hq : p.Hkv;
    const int h = p.reduce == ScoreReduce::none ? t.g0 + r % t.heads : t.hkv;
    float* s = p.scores + ((int64_t(t.b) * p.T + t.t0 + r / t.heads) * heads + h) * p.score_len;
    const bool live = r < t.live;
    if (first)
      for (int64_t j = 0; j < (live ? lo : p.score_len) && j < p.score_len; ++j) s[j] = -INFINITY;
    if (last && live)
      for (int64_t j = hi; j < p.score_len; ++j) s[j] = -INFINITY;
  }
}

template <class T>
void run_items(const PagedDecode& p, const Grid& x, const int64_t* begin, float* partials,
               int64_t i0, int64_t i1) {
  Scratch<T> scratch;
  [[maybe_unused]] const AmxTiles tiles;
  int64_t task = 0;
  for (int64_t n = x.tasks; n > 1;) {  // the task that owns item i0
    const int64_t half = n / 2;
    if (begin[task + half] <= i0) task += half;
    n -= half;
  }
  Task t;
  for (int64_t i = i0; i < i1; ++i) {
    const bool next = i == i0 || begin[task + 1] <= i;
    if (next) {
      while (begin[task + 1] <= i) ++task;
      t = task_of(p, x, task);
    }
    const int64_t chunk = i - begin[task], chunks = begin[task + 1] - begin[task];
    const int from = t.lo + int(chunk) * kChunk, to = from + kChunk < t.hi ? from + kChunk : t.hi;
    Item<T> item(p, t, scratch);
    if (next) item.load_queries();
    item.run(from, to);
    if (p.scores) fill_scores(p, t, chunk == 0, chunk == chunks - 1);
    if (!p.v) continue;
    const Partial part{partials + i * partial_floats(p, x), p.D};
    const int dim = round_up(p.D, Vec::width);
    for (int r = 0; r < t.rows; ++r) {
      const bool live = r < t.live;
      const float m = live ? scratch.m[r] : -INFINITY, l = live ? scratch.l[r] : 0;
      if (chunks == 1) {
        Item<T>::finish(p, t.b, item.token(r), item.head(r), live, m, l, scratch.out + r * dim);
      } else if (live) {
        part.m(r)[0] = m;
        part.m(r)[1] = l;
        for (int c = 0; c < p.D; ++c) part.out(r)[c] = scratch.out[r * dim + c];
      }
    }
  }
}

// Merges the chunks of each task, in order.
template <class T>
void merge_items(const PagedDecode& p, const Grid& x, const int64_t* begin, float* partials,
                 int64_t i0, int64_t i1) {
  float out[kMaxDim];
  for (int64_t i = i0; i < i1; ++i) {
    const int64_t chunks = begin[i + 1] - begin[i];
    if (chunks == 1) continue;
    const Task t = task_of(p, x, i);
    for (int r = 0; r < t.rows; ++r) {
      const int token = t.t0 + r / t.heads, head = t.g0 + r % t.heads;
      float m = -INFINITY, l = 0;
      for (int c = 0; c < p.D; ++c) out[c] = 0;
      if (r >= t.live) {
        Item<T>::finish(p, t.b, token, head, false, m, l, out);
        continue;
      }
      const auto part = [&](int64_t j) {
        return Partial{partials + (begin[i] + j) * partial_floats(p, x), p.D};
      };
      for (int64_t j = 0; j < chunks; ++j) m = part(j).m(r)[0] > m ? part(j).m(r)[0] : m;
      for (int64_t j = 0; j < chunks; ++j) {
        const float mj = part(j).m(r)[0];
        if (mj == -INFINITY) continue;
        const float w = std::exp(mj - m);
        l += w * part(j).m(r)[1];
        const float* from = part(j).out(r);
        for (int c = 0; c < p.D; ++c) out[c] += w * from[c];
      }
      Item<T>::finish(p, t.b, token, head, true, m, l, out);
    }
  }
}

template <class T>
void decode(const PagedDecode& p, const Queue& q) {
  const Grid x = grid_of(p);
  int64_t* begin = static_cast<int64_t*>(p.workspace);
  count_items(p, x, begin);
  const int64_t items = begin[x.tasks];
  float* partials = reinterpret_cast<float*>(begin + (x.tasks + 2) / 2 * 2);
  // Below some 100k multiply-adds a second thread costs more than it brings.
  const int64_t work = int64_t(x.block_rows) * p.D * kChunk,
                grain = work < 100000 ? 100000 / work + 1 : 1;
  q.parallel(items, grain,
             [&](int64_t a, int64_t b) { run_items<T>(p, x, begin, partials, a, b); });
  if (p.v && items > x.tasks)
    q.parallel(x.tasks, 1,
               [&](int64_t a, int64_t b) { merge_items<T>(p, x, begin, partials, a, b); });
}

void paged_decode_copy(const PagedDecode& p, const Queue& q) {
  if (p.dtype == DType::f32) decode<float>(p, q);
  if (p.dtype == DType::bf16) decode<bf16>(p, q);
  if (p.dtype == DType::f16) decode<f16>(p, q);
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(paged_decode, paged_decode_copy, PagedDecode)

#if TOKOPS_ISA_IS_BASE
namespace tokops {
size_t paged_decode_workspace(const PagedDecode& p) {
  const Grid x = grid_of(p);
  int64_t items = 0;
  for (int64_t i = 0; i < x.tasks; ++i) items += chunks_of(task_of(p, x, i));
  const int64_t parts = p.v && items > x.tasks ? items * partial_floats(p, x) : 0;
  return size_t(x.tasks + 2) / 2 * 16 + size_t(parts) * 4;
}
}  // namespace tokops
#endif
