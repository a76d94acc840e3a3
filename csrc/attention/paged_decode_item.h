// One work item of attention over parts on the CPU: some rows over one chunk of their keys in one
// part, tile by tile. For .isa.cpp files.
#pragma once
#include <type_traits>

#include "attention/lookahead.h"
#include "attention/packed_tile.h"
#include "attention/running_softmax.h"
#include "attention/tiles_amx.h"

namespace tokops {
namespace {

template <class T>
constexpr bool kIsBf16 = std::is_same_v<T, bf16>;
#if defined(__AMX_BF16__)
template <class T>
constexpr bool kHasTiles = kIsBf16<T>;
#else
template <class T>
constexpr bool kHasTiles = false;
#endif
// Products of bf16 pairs: on AMD's CPUs twice as many as of floats in the same time.
#if defined(__AVX512BF16__)
template <class T>
constexpr bool kHasPairs = kIsBf16<T>;
#else
template <class T>
constexpr bool kHasPairs = false;
#endif

template <class T>
struct Scratch {
  alignas(64) float s[kMaxRows * kTile];
  alignas(64) float out[kMaxRows * kMaxDim];
  alignas(64) float q[kMaxRows * kMaxDim];
  alignas(64) float keys[kKeyBlock * kMaxDim];
  static constexpr int tiled = kHasTiles<T> ? kMaxDim : 1;
  alignas(64) T tile_q[kMaxRows * (kHasPairs<T> ? kMaxDim : 1)];
  alignas(64) T tile_kv[kTile * tiled];
  alignas(64) float norm[kTile];
  float m[kMaxRows], l[kMaxRows], keep[kMaxRows];
  alignas(
      64) float lanes[kMaxRows * Vec::width];  // of l, which is known when all tiles are through
  int row_pos[kMaxRows];
  Rows rows[2];  // of the tile at work and of the next
  PackedScratch packed;
};

template <class T>
class Item {
 public:
  Item(const PagedDecode& p, const Part& part, const Task& t, Scratch<T>& x)
      : p_(p),
        part_(part),
        t_(t),
        x_(x),
        dim_(round_up(p.D, Vec::width)),
        q_dim_(round_up(p.D, kLanes)),
        k_bytes_(row_bytes(part.k, p.D)),
        lookahead_(k_bytes_, row_bytes(part.v, p.D), p.v != nullptr),
        tiles_(kHasTiles<T> && p.D % 32 == 0 && !packed(part.k) && !packed(part.v) && !part.v.norm),
        pairs_(kHasPairs<T> && !tiles_ && cpu::tuned_for_amd() && p.D % 32 == 0 && !p.rotate &&
               !packed(part.k)) {
    for (int r = 0; r < t.live; ++r) {
      x.m[r] = -INFINITY;
      x.l[r] = 0;
      store(x.lanes + r * Vec::width, zero());
      for (int c = 0; c < dim_; ++c) x.out[r * dim_ + c] = 0;
    }
  }

  // Queries and positions of the task's rows; items of one task and part share them.
  void load_queries() {
    const int padded = round_up(t_.live, Vec::groups);
    float row[kMaxDim];
    x_.packed.query_bytes = packed(part_.k) ? query_bytes(part_.k, t_.live, p_.D, p_.q_int8) : 0;
    if (!tiles_ && !pairs_ && !packed(part_.k))
      for (int i = 0; i < padded * q_dim_; ++i) x_.q[i] = 0;
    if (kHasPairs<T> && pairs_)
      for (int i = 0; i < padded * p_.D; ++i) x_.tile_q[i] = T{};
    for (int r = 0; r < t_.live; ++r) {
      x_.row_pos[r] = row_position(p_, t_.view, t_.b, token(r));
      const T* q =
          static_cast<const T*>(p_.q) + t_.b * p_.q_b + token(r) * p_.q_t + head(r) * p_.q_h;
      for (int c = 0; c < p_.D; ++c) row[c] = to_float(q[c]);
      if (p_.rotate) hadamard_row(row, p_.D);
      place_query(r, row);
    }
  }

  // Over the keys [from, to); then come those up to `beyond`, in an item of the same thread.
  // `called` tells that this item's first rows were called into the cache by the one before.
  void run(int from, int to, int beyond, bool called) {
    if (t_.live == 0) return;
    const Finder finder(p_, part_, t_);
    int at = finder.find(from, to, lookahead_.keys(), x_.rows[0]);
    if (!called) lookahead_.call_first(x_.rows[0]);
    for (int i = 0; x_.rows[i % 2].n > 0; ++i) {
      tile_ = &x_.rows[i % 2];
      const bool last = at >= to;
      Rows& next = x_.rows[(i + 1) % 2];
      at = finder.find(at, last ? beyond : to, lookahead_.keys(), next);
      masked_ = !all_seen();
      const int n = tile_->n;
      ahead_ = lookahead_.rows_after(*tile_, next, called || i > 0);
      score(n);
      if (p_.scores) write_scores(n);
      if (p_.v) attend(n);
      if (last) break;
    }
    for (int r = 0; r < t_.live; ++r) x_.l[r] = sum(load(x_.lanes + r * Vec::width));
  }

  int token(int r) const { return t_.t0 + r / t_.heads; }
  int head(int r) const { return t_.g0 + r % t_.heads; }

  // Writes output and lse of one row from its state, the sink counted in.
  static void finish(const PagedDecode& p, int b, int token, int head, bool exists, float m,
                     float l, float* out) {
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
    if (p.rotate && share != 0) hadamard_row(out, p.D);
    for (int c = 0; c < p.D; ++c) from_float(share == 0 ? 0.f : out[c] * share, to + c);
  }

 private:
  static bool packed(const Side& x) { return x.codec != Codec::full; }
  static int row_bytes(const Side& x, int dim) {
    switch (x.codec) {
      case Codec::full:
        return dim * int(sizeof(T));
      case Codec::int4:
        return dim / 2;
      case Codec::int2:
        return dim / 4;
      default:
        return dim;
    }
  }

  void place_query(int r, float* row) {
    if (packed(part_.k)) return place_packed_query(part_.k, row, r, t_.live, p_.D, x_.packed);
    float* to = x_.q + query_at(r, 0, q_dim_);
    if (!tiles_ && !pairs_)
      for (int c = 0; c < p_.D; ++c) {
        const int i = float_at<T>(c, p_.D);
        to[i / kLanes * Vec::width + i % kLanes] = row[c];
      }
#if defined(__AVX512BF16__)
    if constexpr (kHasPairs<T>)
      if (pairs_)
        for (int c = 0; c < p_.D; ++c) from_float(row[c], x_.tile_q + pair_query_at(r, c, p_.D));
#endif
#if defined(__AMX_BF16__)
    if constexpr (kHasTiles<T>)
      if (tiles_)
        for (int c = 0; c < p_.D; ++c) from_float(row[c], x_.tile_q + amx_query_at(r, c, p_.D));
#endif
  }

  // Whether every row sees every key of the tile.
  bool all_seen() const {
    const int tokens = t_.live / t_.heads;
    if (tile_->first < t_.view.start) return false;
    if (p_.ancestors ? tile_->last >= t_.view.first : tile_->last > x_.row_pos[0]) return false;
    if (!p_.window) return true;
    int top = 0;
    for (int i = 0; i < tokens; ++i) {
      const int pos = x_.row_pos[i * t_.heads];
      top = pos > top ? pos : top;
    }
    return tile_->first > top - p_.window;
  }

  // s = scale * q . k, sane, and -inf where a row does not see a key.
  void score(int n) {
    if (packed(part_.k))
      score_packed(part_.k, *tile_, t_.hkv, t_.live, p_.D, x_.packed, x_.s, ahead_);
    else
      score_full(n);
    if (part_.k.norm) {
      load_norms(part_.k, *tile_, t_.hkv, x_.norm);
      for (int r = 0; r < t_.live; ++r)
        for (int j = 0; j < n; ++j) x_.s[r * kTile + j] *= x_.norm[j];
    }
    const Vec scale = splat(p_.scale);
    for (int r = 0; r < t_.live; ++r) {
      float* s = x_.s + r * kTile;
      for (int j = 0; j < n; j += Vec::width) store(s + j, sane(load(s + j) * scale));
      if (masked_)
        for (int j = 0; j < n; ++j)
          if (!sees(p_, t_.view, t_.b, token(r), x_.row_pos[r], tile_->pos[j])) s[j] = -INFINITY;
    }
  }

  void score_full([[maybe_unused]] int n) {
    const T* rows[kTile];
    for (int j = 0; j < kTile; ++j) rows[j] = reinterpret_cast<const T*>(tile_->k[j]);
#if defined(__AMX_BF16__)
    if constexpr (kHasTiles<T>)
      if (tiles_) {
        amx_dots(x_.tile_q, t_.live, p_.D, rows, x_.tile_kv, x_.s, kTile, ahead_);
        return;
      }
#endif
    const Stretch* s = tile_->stretch;
    for (int j = 0; j < n; j += kKeyBlock) {
      while (s->to <= j) ++s;
      const bool near = part_.k.p == k_bytes_ && s->from <= j && j + kKeyBlock <= s->to;
      if (p_.D == 64)
        near ? score_block<64, true>(rows + j, j) : score_block<64, false>(rows + j, j);
      else if (p_.D == 128)
        near ? score_block<128, true>(rows + j, j) : score_block<128, false>(rows + j, j);
      else
        score_block<0, false>(rows + j, j);
    }
  }

  // The scores of kKeyBlock keys from j on. D is the head dimension where that has code of its own,
  // else 0; Near: the keys lie side by side, so that one address reaches all.
  template <int D, bool Near>
  void score_block(const T* const* rows, int j) {
    const int d = D ? D : p_.D, padded = D ? D : q_dim_;
    const T* k[kKeyBlock];
    for (int i = 0; i < kKeyBlock; ++i) k[i] = Near ? rows[0] + i * d : rows[i];
    const auto in_groups = [&](const auto& f) {
      in_blocks<kGroupBlock>((t_.live + Vec::groups - 1) / Vec::groups,
                             [&](int i, auto count) { f(i * Vec::groups, count); });
    };
#if defined(__AVX512BF16__)
    if constexpr (kHasPairs<T>)
      if (pairs_)
        return in_groups([&](int r, auto count) {
          pair_dots_block<count.value, D>(x_.tile_q + r * d, d, k, x_.s + r * kTile + j, kTile,
                                          ahead_);
        });
#endif
    const auto multiply = [&](const auto* const* keys) {
      in_groups([&](int r, auto count) {
        dots_block<count.value, D, sizeof(T)>(x_.q + r * padded, padded, keys, x_.s + r * kTile + j,
                                              kTile, ahead_);
      });
    };
    if constexpr (kKeyStep<T> > 0)
      if (d % kKeyStep<T> == 0) return multiply(k);
    const float* floats[kKeyBlock];
    for (int i = 0; i < kKeyBlock; ++i)
      floats[i] = as_floats(k[i], d, padded, x_.keys + i * padded);
    multiply(floats);
  }

  void write_scores(int n) {
    const bool folded = p_.reduce != ScoreReduce::none;
    for (int r = 0; r < t_.live; r += folded ? t_.heads : 1) {
      float* to = p_.scores + ((int64_t(t_.b) * p_.T + token(r)) * (folded ? p_.Hkv : p_.Hq) +
                               (folded ? t_.hkv : head(r))) *
                                  p_.score_len;
      float* s = x_.s + r * kTile;
      float row[kTile];
      for (int j = 0; folded && j < n; ++j) row[j] = s[j];
      if (p_.reduce == ScoreReduce::max)
        for (int g = 1; g < t_.heads; ++g)
          for (int j = 0; j < n; ++j)
            row[j] = row[j] > s[g * kTile + j] ? row[j] : s[g * kTile + j];
      if (p_.reduce == ScoreReduce::sum)
        for (int g = 1; g < t_.heads; ++g)
          for (int j = 0; j < n; ++j) row[j] += s[g * kTile + j];
      put_scores(folded ? row : s, n, to);
    }
  }

  void put_scores(const float* s, int n, float* to) const {
    if (!part_.positions) {
      const int64_t room = p_.score_len - tile_->first;
      for (int j = 0; j < n && j < room; ++j)  // another part may hold what a slot does not
        if (!part_.k.norm || s[j] != -INFINITY) to[tile_->first + j] = s[j];
      return;
    }
    for (int j = 0; j < n; ++j)
      if (tile_->pos[j] < p_.score_len) to[tile_->pos[j]] = s[j];
  }

  // From scores to sums over values.
  void attend(int n) {
    bend(n);
    const bool holes =
        normalise(softmax_rows(), n, tiles_, [&] { tiles_ ? ahead_.call(4) : ahead_.lines(8); });
    if (part_.v.norm) {
      load_norms(part_.v, *tile_, t_.hkv, x_.norm);
      for (int r = 0; r < t_.live; ++r)
        for (int j = 0; j < n; ++j)
          if (x_.s[r * kTile + j] > 0) x_.s[r * kTile + j] *= x_.norm[j];
    }
    if (packed(part_.v))
      add_packed(part_.v, *tile_, t_.hkv, x_.s, t_.live, p_.D, x_.keep, kIsBf16<T>, x_.packed,
                 x_.out, dim_, ahead_);
    else if (holes)
      add_seen_values(n);
    else
      add_values(n);
  }

  // Soft cap and the factor of the initial token.
  void bend(int n) {
    if (p_.softcap > 0) soft_cap(softmax_rows(), n, p_.softcap);
    if (p_.log_gamma && tile_->first <= t_.view.start && t_.view.start <= tile_->last) {
      int j = 0;
      while (j < n && tile_->pos[j] != t_.view.start) ++j;
      for (int r = 0; j < n && r < t_.live; ++r)
        if (x_.row_pos[r] > t_.view.start) x_.s[r * kTile + j] += p_.log_gamma[head(r)];
    }
  }

  SoftmaxRows softmax_rows() const { return {x_.s, x_.m, x_.lanes, x_.keep, t_.live}; }

  void add_values(int n) {
    const T* rows[kTile];
    for (int j = 0; j < kTile; ++j) rows[j] = reinterpret_cast<const T*>(tile_->v[j]);
#if defined(__AMX_BF16__)
    if constexpr (kHasTiles<T>)
      if (tiles_) {
        amx_pair_values(rows, n, p_.D, x_.tile_kv, ahead_);
        for (int r = 0; r < t_.live; r += 8) {
          const int count = t_.live - r < 8 ? t_.live - r : 8;
          amx_weighted(x_.s + r * kTile, kTile, count, x_.tile_kv, p_.D, x_.keep + r,
                       x_.out + r * dim_, dim_, ahead_);
        }
        return;
      }
#endif
    in_blocks<kValueRows<T>>(t_.live, [&](int r, auto count) {
      weighted_rows<decltype(count)::value>(x_.s + r * kTile, kTile, rows, n, p_.D, x_.keep + r,
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
          v[m++] = reinterpret_cast<const T*>(tile_->v[j]);
        }
      weighted_rows<1>(w, kTile, v, m, p_.D, x_.keep + r, x_.out + r * dim_, dim_, ahead_);
    }
  }

  const PagedDecode& p_;
  const Part& part_;
  const Task& t_;
  Scratch<T>& x_;
  const Rows* tile_ = nullptr;
  Ahead ahead_{};
  const int dim_, q_dim_;  // D rounded up, of the output and of the queries
  const int k_bytes_;
  const Lookahead lookahead_;
  const bool tiles_;     // products on AMX tiles
  const bool pairs_;     // scores from pairs of bf16
  bool masked_ = false;  // some row does not see some key of the tile
};

}  // namespace
}  // namespace tokops
