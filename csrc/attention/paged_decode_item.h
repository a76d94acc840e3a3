// One work item of paged_decode on the CPU: some rows over one chunk of their keys, tile by tile.
// For .isa.cpp files.
#pragma once
#include "attention/paged_decode.h"
#include "attention/tiles.h"
#include "attention/tiles_amx.h"

namespace tokops {
namespace {

constexpr int kTile =
    64;  // keys scored before their values are read: a tile of both fits the second cache
constexpr int kMaxRows = 64, kMaxDim = 256;

// Rows of one (sequence, KV head) that read the same keys.
struct Task {
  int b, hkv;
  int t0, g0;  // first new token and first head of the group
  int heads;   // heads of the group among the rows: row r is token t0 + r / heads, head g0 + r %
               // heads
  int rows;    // all rows
  int live;    // rows whose token exists; the others are empty
  const int32_t* list;  // selected positions, or null
  int lo, hi;           // keys, or entries of the list
  RowView view;
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

// The keys of a tile: logical positions and where their rows stand.
template <class T>
struct Rows {
  int n;
  int pos[kTile];
  const T *k[kTile], *v[kTile];
};

#if defined(__AMX_BF16__)
template <class T>
constexpr bool kHasTiles = false;
template <>
constexpr bool kHasTiles<bf16> = true;
#else
template <class T>
constexpr bool kHasTiles = false;
#endif

template <class T>
struct Scratch {
  alignas(64) float s[kMaxRows * kTile];
  alignas(64) float out[kMaxRows * kMaxDim];
  alignas(64) float q[kMaxRows * kMaxDim];
  alignas(64) float keys[kKeyBlock * kMaxDim];
  static constexpr int tiled = kHasTiles<T> ? kMaxDim : 1;
  alignas(64) T tile_q[kMaxRows * tiled];
  alignas(64) T tile_kv[kTile * tiled];
  float m[kMaxRows], l[kMaxRows], keep[kMaxRows];
  int row_pos[kMaxRows];
  Rows<T> rows[2];  // of the tile at work and of the next
};

template <class T>
class Item {
 public:
  Item(const PagedDecode& p, const Task& t, Scratch<T>& x)
      : p_(p),
        t_(t),
        x_(x),
        dim_(round_up(p.D, Vec::width)),
        dim4_(round_up(p.D, 4)),
        tiles_(kHasTiles<T> && p.D % 32 == 0) {
    for (int r = 0; r < t.live; ++r) {
      x.m[r] = -INFINITY;
      x.l[r] = 0;
      for (int c = 0; c < dim_; ++c) x.out[r * dim_ + c] = 0;
    }
  }

  // Queries and positions of the task's rows; items of one task share them.
  void load_queries() {
    const int padded = round_up(t_.live, Vec::groups);
    if (!tiles_)
      for (int i = 0; i < padded * dim4_; ++i) x_.q[i] = 0;
    for (int r = 0; r < t_.live; ++r) {
      x_.row_pos[r] = row_position(p_, t_.view, t_.b, token(r));
      const T* q =
          static_cast<const T*>(p_.q) + t_.b * p_.q_b + token(r) * p_.q_t + head(r) * p_.q_h;
      float* to = x_.q + query_at(r, 0, dim4_);
      if (!tiles_)
        for (int c = 0; c < p_.D; ++c) to[c / 4 * Vec::width + c % 4] = to_float(q[c]);
#if defined(__AMX_BF16__)
      if constexpr (kHasTiles<T>)
        if (tiles_)
          for (int c = 0; c < p_.D; ++c) x_.tile_q[amx_query_at(r, c, p_.D)] = q[c];
#endif
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
      ahead_ = rows_of(x_.rows[(i + 1) % 2]);
      score(n);
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
  static void finish(const PagedDecode& p, int b, int token, int head, bool exists, float m,
                     float l, const float* out) {
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
    for (int j = n; j < kTile && n > 0; ++j) {  // readable rows to fill up blocks
      x.k[j] = x.k[n - 1];
      x.v[j] = x.v[n - 1];
    }
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

  // The rows of a tile, keys first.
  Ahead rows_of(const Rows<T>& x) const {
    const auto first = reinterpret_cast<const char* const*>(x.k);  // v stands right behind
    return {first, first + (x.n == 0 ? 0 : p_.v ? 2 * kTile : kTile), p_.D * int(sizeof(T))};
  }

  // s = scale * q . k, sane, and -inf where a row does not see a key.
  void score(int n) {
    for (int j = 0; j < n && !tiles_; j += kKeyBlock) {
      const float* k[kKeyBlock];
      for (int i = 0; i < kKeyBlock; ++i)
        k[i] = as_floats(tile_->k[j + i], p_.D, dim4_, x_.keys + i * dim4_);
      in_blocks<kGroupBlock>((t_.live + Vec::groups - 1) / Vec::groups, [&](int i, auto count) {
        const int r = i * Vec::groups;
        dots_block<decltype(count)::value>(x_.q + r * dim4_, dim4_, k, x_.s + r * kTile + j, kTile,
                                           ahead_);
      });
    }
#if defined(__AMX_BF16__)
    if constexpr (kHasTiles<T>)
      if (tiles_) amx_dots(x_.tile_q, t_.live, p_.D, tile_->k, x_.tile_kv, x_.s, kTile, ahead_);
#endif
    const Vec scale = splat(p_.scale);
    for (int r = 0; r < t_.live; ++r) {
      float* s = x_.s + r * kTile;
      for (int j = 0; j < n; j += Vec::width) store(s + j, sane(load(s + j) * scale));
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
      float* to =
          p_.scores + ((int64_t(t_.b) * p_.T + token(r)) * heads + h) * p_.score_len + first;
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
      const Vec cap = splat(p_.softcap), inverse = splat(1 / p_.softcap), one = splat(1),
                none = zero();
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
      ahead_.call(4);
      for (int j = n; j < width; ++j) s[j] = s[n - 1];  // neither the largest nor the least
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
      for (int j = n; j < width; ++j) s[j] = -INFINITY;
      Vec total = zero();
      for (int j = 0; j < width; j += Vec::width) {
        const Vec e = exp_nonpositive(load(s + j) - splat(m));
        store(s + j, e);
        total = total + e;
      }
      for (int j = width; tiles_ && j < kTile; j += Vec::width) store(s + j, zero());
      x_.m[r] = m;
      x_.l[r] = x_.l[r] * x_.keep[r] + sum(total);
    }
    return holes;
  }

  void add_values(int n) {
#if defined(__AMX_BF16__)
    if constexpr (kHasTiles<T>)
      if (tiles_) {
        amx_pair_values(tile_->v, n, p_.D, x_.tile_kv, ahead_);
        for (int r = 0; r < t_.live; r += 8) {
          const int rows = t_.live - r < 8 ? t_.live - r : 8;
          amx_weighted(x_.s + r * kTile, kTile, rows, x_.tile_kv, p_.D, x_.keep + r,
                       x_.out + r * dim_, dim_, ahead_);
        }
        return;
      }
#endif
    in_blocks<kValueRows>(t_.live, [&](int r, auto count) {
      weighted_rows<decltype(count)::value>(x_.s + r * kTile, kTile, tile_->v, n, p_.D, x_.keep + r,
                                            x_.out + r * dim_, dim_, ahead_);
    });
  }

  // Row by row, over the keys with weight alone: what a row does not see may hold anything, NaN
  // included.
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
      weighted_rows<1>(w, kTile, v, m, p_.D, x_.keep + r, x_.out + r * dim_, dim_, ahead_);
    }
  }

  const PagedDecode& p_;
  const Task& t_;
  Scratch<T>& x_;
  const Rows<T>* tile_ = nullptr;
  Ahead ahead_{};
  const int dim_, dim4_;  // D rounded up, of the output and of the queries
  const bool tiles_;      // products on AMX tiles
  bool masked_ = false;   // some row does not see some key of the tile
};

}  // namespace
}  // namespace tokops
