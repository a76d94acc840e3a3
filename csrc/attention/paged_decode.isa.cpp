#include "attention/paged_decode.h"

#include "attention/tiles.h"
#include "common/isa.h"

namespace tokops {
namespace {

constexpr int kTile = 64;    // keys scored before their values are read: a tile of both fits the second cache
constexpr int kChunk = 256;  // keys of one work item; fixed, so that results do not depend on threads
constexpr int kMaxRows = 64, kMaxDim = 256;

// Rows of one (sequence, KV head) that read the same keys.
struct Task {
  int b, hkv;
  int t0, g0;        // first new token and first head of the group
  int heads;         // heads of the group among the rows: row r is token t0 + r / heads, head g0 + r % heads
  int rows;          // all rows
  int live;          // rows whose token exists; the others are empty
  const int32_t* list;  // selected positions, or null
  int lo, hi;        // keys, or entries of the list
  RowView view;
};

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

int64_t partial_floats(const PagedDecode& p, const Grid& x) { return int64_t(x.block_rows) * (p.D + 2); }

// Item numbers at which each task begins, then the total.
void count_items(const PagedDecode& p, const Grid& x, int64_t* begin) {
  begin[0] = 0;
  for (int64_t i = 0; i < x.tasks; ++i) begin[i + 1] = begin[i] + chunks_of(task_of(p, x, i));
}

// The keys of a tile: logical positions and where their rows stand.
template <class T>
struct Rows {
  int n;
  int pos[kTile];
  const T *k[kTile], *v[kTile];
};

template <class T>
struct Scratch {
  alignas(64) float s[kMaxRows * kTile];
  alignas(64) float out[kMaxRows * kMaxDim];
  alignas(64) float q[kMaxRows * kMaxDim];
  alignas(64) float keys[kKeyBlock * kMaxDim];
  float m[kMaxRows], l[kMaxRows], keep[kMaxRows];
  int row_pos[kMaxRows];
  Rows<T> rows[2];  // of the tile at work and of the next
};

int round_up(int x, int to) { return (x + to - 1) / to * to; }

template <class T>
class Item {
 public:
  Item(const PagedDecode& p, const Task& t, Scratch<T>& x)
      : p_(p), t_(t), x_(x), dim_(round_up(p.D, Vec::width)), dim4_(round_up(p.D, 4)) {
    for (int r = 0; r < t.live; ++r) {
      x.m[r] = -INFINITY;
      x.l[r] = 0;
      for (int c = 0; c < dim_; ++c) x.out[r * dim_ + c] = 0;
    }
  }

  // Queries and positions of the task's rows; items of one task share them.
  void load_queries() {
    const int padded = round_up(t_.live, Vec::groups);
    for (int i = 0; i < padded * dim4_; ++i) x_.q[i] = 0;
    for (int r = 0; r < t_.live; ++r) {
      const T* q = static_cast<const T*>(p_.q) + t_.b * p_.q_b + token(r) * p_.q_t + head(r) * p_.q_h;
      float* to = x_.q + query_at(r, 0, dim4_);
      for (int c = 0; c < p_.D; ++c) to[c / 4 * Vec::width + c % 4] = to_float(q[c]);
      x_.row_pos[r] = row_position(p_, t_.view, t_.b, token(r));
    }
  }

  void run(int from, int to) {
    if (t_.live == 0) return;
    locate(from, to, x_.rows[0]);
    for (int at = from, i = 0; at < to; at += kTile, ++i) {
      tile_ = &x_.rows[i % 2];
      locate(at + kTile, to, x_.rows[(i + 1) % 2]);
      masked_ = !all_seen(tile_->pos[0], tile_->pos[tile_->n - 1]);
      const int n = tile_->n;
      score(n, x_.rows[(i + 1) % 2]);
      if (p_.scores) write_scores(n);
      if (!p_.v) continue;
      bend(n);
      if (normalise(n))
        add_seen_values(n);
      else
        add_values(n);
    }
  }

  int token(int r) const { return t_.t0 + r / t_.heads; }
  int head(int r) const { return t_.g0 + r % t_.heads; }

  // Writes output and lse of one row from its state, the sink counted in.
  static void finish(const PagedDecode& p, int b, int token, int head, bool exists, float m, float l,
                     const float* out) {
    const int64_t at = (int64_t(b) * p.T + token) * p.Hq + head;
    float top = m, scale = 1;
    if (p.sink_logit && exists) {
      const float sink = p.sink_logit[head];
      top = sink > m ? sink : m;
      scale = m == -INFINITY ? 0 : std::exp(m - top);
      l = l * scale + (sink == -INFINITY ? 0 : std::exp(sink - top));
    }
    p.lse[at] = l > 0 ? top + std::log(l) : -INFINITY;
    const float share = l > 0 && m > -INFINITY ? scale / l : 0;
    T* to = static_cast<T*>(p.out) + at * p.D;
    for (int c = 0; c < p.D; ++c) from_float(share == 0 ? 0.f : out[c] * share, to + c);
  }

 private:
  // The tile of keys from `at` on, before `to`.
  void locate(int at, int to, Rows<T>& x) const {
    const int n = x.n = to - at < kTile ? (to > at ? to - at : 0) : kTile;
    for (int j = 0; j < n; ++j) x.pos[j] = t_.list ? t_.list[at + j] : at + j;
    const int32_t* table = p_.table + t_.b * p_.table_b + t_.hkv * p_.table_h;
    const T* k = static_cast<const T*>(p_.k) + t_.hkv * p_.k_h;
    const T* v = static_cast<const T*>(p_.v) + t_.hkv * p_.v_h;
    for (int j = 0; j < n;) {  // one page after the other
      const int page = x.pos[j] / p_.P, first = page * p_.P;
      const T* kp = k + table[page] * p_.k_n;
      const T* vp = v + table[page] * p_.v_n;
      if (t_.list) {
        for (; j < n && x.pos[j] - first < p_.P; ++j) {
          x.k[j] = kp + (x.pos[j] - first) * p_.k_p;
          x.v[j] = vp + (x.pos[j] - first) * p_.v_p;
        }
      } else {
        const int slot = x.pos[j] - first, run = p_.P - slot < n - j ? p_.P - slot : n - j;
        for (int i = 0; i < run; ++i) {
          x.k[j + i] = kp + (slot + i) * p_.k_p;
          x.v[j + i] = vp + (slot + i) * p_.v_p;
        }
        j += run;
      }
    }
    for (int j = n; j < round_up(n, kKeyBlock); ++j) x.k[j] = x.k[n - 1];
  }

  bool all_seen(int first, int last) const {
    const int tokens = t_.live / t_.heads;
    if (p_.ancestors ? last >= t_.view.first : last > x_.row_pos[0]) return false;
    if (!p_.window) return true;
    int top = 0;
    for (int i = 0; i < tokens; ++i) {
      const int pos = x_.row_pos[i * t_.heads];
      top = pos > top ? pos : top;
    }
    return first > top - p_.window;
  }

  // s = scale * q . k, sane, and -inf where a row does not see a key or the tile has ended.
  // Meanwhile the rows of the next tile are called into the cache.
  void score(int n, const Rows<T>& next) {
    for (int j = 0; j < n; j += kKeyBlock) {
      for (int i = j; i < j + kKeyBlock && i < next.n; ++i)
        for (int c = 0; c < p_.D; c += int(64 / sizeof(T))) {
          __builtin_prefetch(next.k[i] + c, 0, 2);
          if (p_.v) __builtin_prefetch(next.v[i] + c, 0, 2);
        }
      const float* k[kKeyBlock];
      for (int i = 0; i < kKeyBlock; ++i) k[i] = as_floats(tile_->k[j + i], p_.D, dim4_, x_.keys + i * dim4_);
      in_blocks<kGroupBlock>((t_.live + Vec::groups - 1) / Vec::groups, [&](int i, auto count) {
        const int r = i * Vec::groups;
        dots_block<decltype(count)::value>(x_.q + r * dim4_, dim4_, k, x_.s + r * kTile + j, kTile);
      });
    }
    const Vec scale = splat(p_.scale);
    for (int r = 0; r < t_.live; ++r) {
      float* s = x_.s + r * kTile;
      for (int j = 0; j < n; j += Vec::width) store(s + j, sane(load(s + j) * scale));
      for (int j = n; j < round_up(n, Vec::width); ++j) s[j] = -INFINITY;
      if (masked_)
        for (int j = 0; j < n; ++j)
          if (!sees(p_, t_.view, t_.b, token(r), x_.row_pos[r], tile_->pos[j])) s[j] = -INFINITY;
    }
  }

  void write_scores(int n) {
    const int first = tile_->pos[0];
    if (first + n > p_.score_len) n = p_.score_len > first ? int(p_.score_len - first) : 0;
    for (int r = 0; r < t_.live; r += p_.reduce == ScoreReduce::none ? 1 : t_.heads) {
      const int heads = p_.reduce == ScoreReduce::none ? p_.Hq : p_.Hkv;
      const int h = p_.reduce == ScoreReduce::none ? head(r) : t_.hkv;
      float* to = p_.scores + ((int64_t(t_.b) * p_.T + token(r)) * heads + h) * p_.score_len + first;
      const float* s = x_.s + r * kTile;
      for (int j = 0; j < n; ++j) to[j] = s[j];
      if (p_.reduce == ScoreReduce::max)
        for (int g = 1; g < t_.heads; ++g)
          for (int j = 0; j < n; ++j) to[j] = to[j] > s[g * kTile + j] ? to[j] : s[g * kTile + j];
      if (p_.reduce == ScoreReduce::sum)
        for (int g = 1; g < t_.heads; ++g)
          for (int j = 0; j < n; ++j) to[j] += s[g * kTile + j];
    }
  }

  // Soft cap and the factor of the initial token.
  void bend(int n) {
    const int width = round_up(n, Vec::width);
    if (p_.softcap > 0) {
      const Vec cap = splat(p_.softcap), inverse = splat(1 / p_.softcap), one = splat(1), none = zero();
      for (int i = 0; i < t_.live * kTile; i += kTile)
        for (int j = i; j < i + width; j += Vec::width) {
          const Vec s = load(x_.s + j), x = s * inverse;
          const Vec e = exp_nonpositive(splat(-2) * max(x, none - x));
          const Vec bent = cap * (one - e) / (one + e);
          const Vec capped = select_less(x, none, none - bent, bent);
          store(x_.s + j, select_less(s, splat(-3.402823466e38f), s, capped));
        }
    }
    if (p_.log_gamma && tile_->pos[0] <= t_.view.start && t_.view.start <= tile_->pos[n - 1]) {
      const int j = lower_bound(tile_->pos, n, t_.view.start);
      if (tile_->pos[j] != t_.view.start) return;
      for (int r = 0; r < t_.live; ++r)
        if (x_.row_pos[r] > t_.view.start) x_.s[r * kTile + j] += p_.log_gamma[head(r)];
    }
  }

  // s becomes exp(s - m); m, l and what is kept of the earlier output follow.
  // Returns whether some key of the tile has no weight for some row.
  bool normalise(int n) {
    const int width = round_up(n, Vec::width);
    bool holes = false;
    for (int r = 0; r < t_.live; ++r) {
      float* s = x_.s + r * kTile;
      Vec top = load(s), low = top;
      for (int j = Vec::width; j < width; j += Vec::width) {
        top = max(top, load(s + j));
        low = min(low, load(s + j));
      }
      const float m = x_.m[r] > largest(top) ? x_.m[r] : largest(top);
      holes |= largest(zero() - low) == INFINITY;
      x_.keep[r] = x_.m[r] == m ? 1.f : std::exp(x_.m[r] - m);
      if (m == -INFINITY) {
        for (int j = 0; j < width; j += Vec::width) store(s + j, zero());
        continue;
      }
      Vec total = zero();
      for (int j = 0; j < width; j += Vec::width) {
        const Vec e = exp_nonpositive(load(s + j) - splat(m));
        store(s + j, e);
        total = total + e;
      }
      x_.m[r] = m;
      x_.l[r] = x_.l[r] * x_.keep[r] + sum(total);
    }
    return holes;
  }

  void add_values(int n) {
    in_blocks<kValueRows>(t_.live, [&](int r, auto count) {
      weighted_rows<decltype(count)::value>(x_.s + r * kTile, kTile, tile_->v, n, p_.D, x_.keep + r, x_.out + r * dim_,
                                            dim_);
    });
  }

  // Row by row, over the keys with weight alone: what a row does not see may hold anything, NaN included.
  void add_seen_values(int n) {
    const T* v[kTile];
    float w[kTile];
    for (int r = 0; r < t_.live; ++r) {
      int m = 0;
      for (int j = 0; j < n; ++j)
        if (x_.s[r * kTile + j] > 0) {
          w[m] = x_.s[r * kTile + j];
          v[m++] = tile_->v[j];
        }
      weighted_rows<1>(w, kTile, v, m, p_.D, x_.keep + r, x_.out + r * dim_, dim_);
    }
  }

  const PagedDecode& p_;
  const Task& t_;
  Scratch<T>& x_;
  const Rows<T>* tile_ = nullptr;
  const int dim_, dim4_;  // D rounded up, of the output and of the queries
  bool masked_ = false;   // some row does not see some key of the tile
};

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
void run_items(const PagedDecode& p, const Grid& x, const int64_t* begin, float* partials, int64_t i0,
               int64_t i1) {
  Scratch<T> scratch;
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
void merge_items(const PagedDecode& p, const Grid& x, const int64_t* begin, float* partials, int64_t i0,
                 int64_t i1) {
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
      const auto part = [&](int64_t j) { return Partial{partials + (begin[i] + j) * partial_floats(p, x), p.D}; };
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
  const int64_t work = int64_t(x.block_rows) * p.D * kChunk, grain = work < 100000 ? 100000 / work + 1 : 1;
  q.parallel(items, grain, [&](int64_t a, int64_t b) { run_items<T>(p, x, begin, partials, a, b); });
  if (p.v && items > x.tasks)
    q.parallel(x.tasks, 1, [&](int64_t a, int64_t b) { merge_items<T>(p, x, begin, partials, a, b); });
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
