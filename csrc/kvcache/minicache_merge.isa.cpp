#include "kvcache/minicache_merge.h"

#include <math.h>

#include "common/isa.h"
#include "common/simd.h"

// A row at a time: three sums, the weights of the two vectors, the length of their mix, the mix.
// The two vectors come from memory once and stay in the first cache.
namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 8192;
constexpr float kPi = 3.14159265358979f;

// f(column, vector of x, vector of y) over a row; zeros behind the end.
template <class T, class F>
void each(const T* x, const T* y, int64_t d, const F& f) {
  int64_t c = 0;
  for (; c + Vec::width <= d; c += Vec::width) f(c, load(x + c), load(y + c));
  if (c < d) f(c, load_first(x + c, int(d - c)), load_first(y + c, int(d - c)));
}

struct Weights {
  float x, y, distance;
  float least;  // a mix shorter than this is rounding
};

// What the mix takes of each vector, from their norms and dot product.
Weights weights_of(const MinicacheMerge& p, float nx, float ny, float dot) {
  if (!(nx + ny < INFINITY)) return {NAN, NAN, NAN, 0};
  // A zero vector has no direction and loses nothing.
  if (nx == 0 || ny == 0) return {nx == 0 ? 0 : 1 / nx, ny == 0 ? 0 : 1 / ny, 0, 0};
  const float ix = 1 / (nx > p.eps ? nx : p.eps), iy = 1 / (ny > p.eps ? ny : p.eps);
  float c = dot * ix * iy;
  c = c < -p.cos_limit ? -p.cos_limit : c > p.cos_limit ? p.cos_limit : c;
  const float angle = acosf(c), sine = sinf(angle);
  float a = 1 - p.t, b = p.t;
  if (!(sine < kChordSine)) a = sinf(a * angle) / sine, b = sinf(b * angle) / sine;
  return {a * ix, b * iy, angle / kPi, kNoMix * ny * iy};
}

inline void put(float* to, Vec a, int n) {
  if (n >= Vec::width) return store(to, a);
  float x[Vec::width];
  store(x, a);
  for (int i = 0; i < n; ++i) to[i] = x[i];
}
template <class T>
void put(T* to, Vec a, int n) {
  float x[Vec::width];
  store(x, a);
  for (int i = 0; i < Vec::width && i < n; ++i) from_float(x[i], to + i);
}

// Saturates what is finite.
void put_norm(float n, void* to, int64_t i) {
  from_float(n < INFINITY && n > kLargestHalf ? kLargestHalf : n, static_cast<f16*>(to) + i);
}

template <class T>
void merge_row(const MinicacheMerge& p, int64_t i) {
  const T* x = static_cast<const T*>(p.prev) + row_offset(p, p.prev_at, i);
  const T* y = static_cast<const T*>(p.cur) + row_offset(p, p.cur_at, i);
  Vec xx = zero(), yy = zero(), xy = zero();
  each(x, y, p.D,
       [&](int64_t, Vec a, Vec b) { xx = fma(a, a, xx), yy = fma(b, b, yy), xy = fma(a, b, xy); });
  const float nx = sqrtf(sum(xx)), ny = sqrtf(sum(yy));
  const Weights w = weights_of(p, nx, ny, sum(xy));
  put_norm(nx, p.norm_prev, i), put_norm(ny, p.norm_cur, i);
  p.distance[i] = w.distance;
  Vec wx = splat(w.x), wy = splat(w.y), square = zero();
  each(x, y, p.D, [&](int64_t, Vec a, Vec b) {
    const Vec mix = fma(wx, a, wy * b);
    square = fma(mix, mix, square);
  });
  float length = sqrtf(sum(square));
  if (length < w.least) {  // opposite: the later vector alone
    wx = zero(), wy = splat(1);
    length = ny;
  }
  const Vec scale = splat(length == 0 ? 0.f : 1 / length);
  T* to = static_cast<T*>(p.e) + i * p.D;
  each(x, y, p.D, [&](int64_t c, Vec a, Vec b) {
    put(to + c, fma(wx, a, wy * b) * scale, int(p.D - c < Vec::width ? p.D - c : Vec::width));
  });
}

template <class T>
void merge_rows(const MinicacheMerge& p, int64_t r0, int64_t r1) {
  for (int64_t i = r0; i < r1; ++i) merge_row<T>(p, i);
}

void minicache_merge_copy(const MinicacheMerge& p, const Queue& q) {
  q.parallel(p.rows, kElementsPerTask / p.D + 1, [&](int64_t r0, int64_t r1) {
    switch (p.dtype) {
      case DType::f32:
        return merge_rows<float>(p, r0, r1);
      case DType::bf16:
        return merge_rows<bf16>(p, r0, r1);
      case DType::f16:
        return merge_rows<f16>(p, r0, r1);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(minicache_merge, minicache_merge_copy, MinicacheMerge)
