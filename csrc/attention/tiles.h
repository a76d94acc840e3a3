// The two inner products of attention over a tile of rows named by pointers, for .isa.cpp files.
#pragma once
#include "common/simd.h"

namespace tokops {
namespace {

#if defined(__AVX512F__)
inline constexpr int kRowBlock = 4;  // query rows whose accumulators fit the registers
#else
inline constexpr int kRowBlock = 2;
#endif
inline constexpr int kKeyBlock = 4, kColumnBlock = 4;

template <int N>
struct Int {
  static constexpr int value = N;
};

// What queries are kept as while keys of type T are scored.
template <class T>
struct QueryOf {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct QueryOf<bf16> {
  using type = bf16;
};
#endif

// out[r * os + j] = q_r . k_j for R rows and 4 keys.
template <int R, class T>
inline void dots(const float* q, int qs, const T* const* k, int d, float* out, int os) {
  Vec acc[R][kKeyBlock];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < kKeyBlock; ++j) acc[r][j] = zero();
  int c = 0;
  for (; c + Vec::width <= d; c += Vec::width) {
    Vec x[kKeyBlock];
    for (int j = 0; j < kKeyBlock; ++j) x[j] = load(k[j] + c);
    for (int r = 0; r < R; ++r) {
      const Vec y = load(q + r * qs + c);
      for (int j = 0; j < kKeyBlock; ++j) acc[r][j] = fma(y, x[j], acc[r][j]);
    }
  }
  if (c < d)
    for (int j = 0; j < kKeyBlock; ++j) {
      const Vec x = load_first(k[j] + c, d - c);
      for (int r = 0; r < R; ++r) acc[r][j] = fma(load(q + r * qs + c), x, acc[r][j]);
    }
  for (int r = 0; r < R; ++r) store_sums(out + r * os, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

#if defined(__AVX512BF16__)
template <int R>
inline void dots(const bf16* q, int qs, const bf16* const* k, int d, float* out, int os) {
  Vec acc[R][kKeyBlock];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < kKeyBlock; ++j) acc[r][j] = zero();
  for (int c = 0; c < d; c += 32) {
    const __mmask32 m = d - c >= 32 ? ~0u : (1u << (d - c)) - 1;
    __m512bh x[kKeyBlock];
    for (int j = 0; j < kKeyBlock; ++j) x[j] = (__m512bh)_mm512_maskz_loadu_epi16(m, k[j] + c);
    for (int r = 0; r < R; ++r) {
      const __m512bh y = (__m512bh)_mm512_loadu_si512(q + r * qs + c);
      for (int j = 0; j < kKeyBlock; ++j) acc[r][j].v = _mm512_dpbf16_ps(acc[r][j].v, y, x[j]);
    }
  }
  for (int r = 0; r < R; ++r) store_sums(out + r * os, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}
#endif

// out[r * os + c..] = out * keep[r] + sum_j p[r * ps + j] v_j for R rows, C vectors of columns, n keys.
template <int R, int C, class T>
inline void weighted(const float* p, int ps, const T* const* v, int n, int c, int tail, const float* keep,
                     float* out, int os) {
  Vec acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) acc[r][i] = zero();
  for (int j = 0; j < n; ++j) {
    Vec x[C];
    for (int i = 0; i < C; ++i)
      x[i] = tail ? load_first(v[j] + c, tail) : load(v[j] + c + i * Vec::width);
    for (int r = 0; r < R; ++r) {
      const Vec y = splat(p[r * ps + j]);
      for (int i = 0; i < C; ++i) acc[r][i] = fma(y, x[i], acc[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) {
      float* o = out + r * os + c + i * Vec::width;
      store(o, fma(load(o), splat(keep[r]), acc[r][i]));
    }
}

template <int R, class T>
inline void weighted_row_block(const float* p, int ps, const T* const* v, int n, int d, const float* keep,
                               float* out, int os) {
  int c = 0;
  for (; c + kColumnBlock * Vec::width <= d; c += kColumnBlock * Vec::width)
    weighted<R, kColumnBlock>(p, ps, v, n, c, 0, keep, out, os);
  for (; c + Vec::width <= d; c += Vec::width) weighted<R, 1>(p, ps, v, n, c, 0, keep, out, os);
  if (c < d) weighted<R, 1>(p, ps, v, n, c, d - c, keep, out, os);
}

// f(first row, constant R) over rows in balanced blocks of at most kRowBlock.
template <class F>
inline void row_blocks(int rows, const F& f) {
  const int blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int i = 0, r = 0; i < blocks; ++i) {
    const int n = (rows - r) / (blocks - i);
    if (n == 1) f(r, Int<1>{});
    if (n == 2) f(r, Int<2>{});
#if defined(__AVX512F__)
    if (n == 3) f(r, Int<3>{});
    if (n == 4) f(r, Int<4>{});
#endif
    r += n;
  }
}

}  // namespace
}  // namespace tokops
