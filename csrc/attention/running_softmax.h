// The softmax of rows over tile after tile of scores. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"

namespace tokops {
namespace {

// Of every row: its scores, [row][kTile], its largest so far, the sum of its weights lane by lane,
// [row][Vec::width], and what is kept of its earlier output.
struct SoftmaxRows {
  float *s, *m, *lanes, *keep;
  int live;
};

// s = cap * tanh(s / cap).
inline void soft_cap(const SoftmaxRows& x, int n, float softcap) {
  const int width = round_up(n, Vec::width);
  const Vec cap = splat(softcap), inverse = splat(1 / softcap), one = splat(1), none = zero();
  for (int i = 0; i < x.live * kTile; i += kTile)
    for (int j = i; j < i + width; j += Vec::width) {
      const Vec s = load(x.s + j), y = s * inverse;
      const Vec e = exp_nonpositive(splat(-2) * max(y, none - y));
      const Vec bent = cap * (one - e) / (one + e);
      const Vec capped = select_less(y, none, none - bent, bent);
      store(x.s + j, select_less(s, splat(-3.402823466e38f), s, capped));
    }
}

// m and keep, for all rows at once: none waits for its own. Returns whether some score is -inf.
inline bool find_largest(const SoftmaxRows& x, int n) {
  const int width = round_up(n, Vec::width);
  Vec least = splat(INFINITY);
  for (int r = 0; r < x.live; ++r) {
    float* s = x.s + r * kTile;
    for (int j = n; j < width; ++j) s[j] = s[n - 1];  // neither the largest nor the least
    Vec top = load(s);
    for (int j = 0; j < width; j += Vec::width) {
      top = max(top, load(s + j));
      least = min(least, load(s + j));
    }
    x.keep[r] = x.m[r];
    x.m[r] = x.m[r] > largest(top) ? x.m[r] : largest(top);
  }
  // A row that has seen nothing yet keeps next to nothing, of nothing.
  for (int r = 0; r < x.live; r += Vec::width)
    store(x.keep + r, exp_nonpositive(load(x.keep + r) - load(x.m + r)));
  return largest(zero() - least) == INFINITY;
}

// s becomes exp(s - m), with zeros behind n, up to the tile's end if `whole`; the rest follows.
// meanwhile() is called once a row. Returns whether some key of the tile has no weight for some
// row.
template <class F>
inline bool normalise(const SoftmaxRows& x, int n, bool whole, const F& meanwhile) {
  const bool holes = find_largest(x, n);
  const int width = round_up(n, Vec::width);
  for (int r = 0; r < x.live; ++r) {
    float* s = x.s + r * kTile;
    meanwhile();
    if (x.m[r] == -INFINITY) {
      for (int j = 0; j < width; j += Vec::width) store(s + j, zero());
      continue;
    }
    for (int j = n; j < width; ++j) s[j] = -INFINITY;
    const Vec m = splat(x.m[r]);
    Vec total = zero();
    for (int j = 0; j < width; j += Vec::width) {
      const Vec e = exp_nonpositive(load(s + j) - m);
      store(s + j, e);
      total = total + e;
    }
    for (int j = width; whole && j < kTile; j += Vec::width) store(s + j, zero());
    float* l = x.lanes + r * Vec::width;
    store(l, fma(load(l), splat(x.keep[r]), total));
  }
  return holes;
}

}  // namespace
}  // namespace tokops
