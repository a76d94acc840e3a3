// The two inner products of attention over a tile of rows named by pointers, for .isa.cpp files.
#pragma once
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int kTile =
    64;  // keys scored before their values are read: a tile of both fits the second cache

template <int N>
struct Int {
  static constexpr int value = N;
};

// Rows that will be needed soon, in the order in which they will be. The products call them into
// the cache a few lines at a time, spread over their work: the core can have few lines in flight,
// and a burst of prefetches would wait for them.
struct Ahead {
  struct Run {
    const uint8_t* const* row;  // the next one, of those up to `end`
    const uint8_t* const* end;
    int bytes;
  };
  Run run[3];
  bool second;  // into the second cache, a tile ahead; else into the first, less far: a miss in it
                // holds a line that is in flight
  int at = 0;   // the run at work
  const uint8_t *line = nullptr, *line_end = nullptr;  // what is left of rows side by side

  [[gnu::always_inline]] void lines(int n) {
    if (line >= line_end && !next_rows()) return;
    if (second)
      for (int i = 0; i < n * 64; i += 64) __builtin_prefetch(line + i, 0, 2);
    else
      for (int i = 0; i < n * 64; i += 64) __builtin_prefetch(line + i, 0, 3);
    line += n * 64;
  }
  void call(int rows) {
    if (at < 3)
      for (int left = rows * ((run[at].bytes + 63) / 64); left > 0; --left) lines(1);
  }

 private:
  bool next_rows() {
    for (; at < 3; ++at)
      if (Run& x = run[at]; x.row < x.end) {
        line = *x.row++;
        line_end = line + x.bytes;
        for (; x.row < x.end && *x.row == line_end; ++x.row) line_end += x.bytes;
        return true;
      }
    return false;
  }
};

// f(first, Int<n>) over [0, rows) in balanced blocks of at most Max (<= 8) rows.
template <int Max, class F>
inline void in_blocks(int rows, const F& f) {
  const int blocks = (rows + Max - 1) / Max;
  for (int i = 0, r = 0; i < blocks; ++i) {
    const int n = (rows - r) / (blocks - i);
    switch (n) {
      case 1:
        f(r, Int<1>{});
        break;
      case 2:
        f(r, Int<2>{});
        break;
      case 3:
        if constexpr (Max >= 3) f(r, Int<3>{});
        break;
      case 4:
        if constexpr (Max >= 4) f(r, Int<4>{});
        break;
      case 5:
        if constexpr (Max >= 5) f(r, Int<5>{});
        break;
      case 6:
        if constexpr (Max >= 6) f(r, Int<6>{});
        break;
      case 7:
        if constexpr (Max >= 7) f(r, Int<7>{});
        break;
      case 8:
        if constexpr (Max >= 8) f(r, Int<8>{});
        break;
    }
    r += n;
  }
}

// ---- Scores. A vector holds four dimensions of Vec::groups query rows, so that one key's four
// dimensions, repeated
// ---- over the width, meet all of them and sums need no shuffle across groups.

inline constexpr int kKeyBlock = 8;
#if defined(__AVX512F__)
inline constexpr int kGroupBlock = 4;  // vectors of queries whose accumulators fit the registers
#else
inline constexpr int kGroupBlock = 2;
#endif

// Where dimension c of query row r stands among rows of padded dimension d4 (a multiple of 4).
inline int query_at(int r, int c, int d4) {
  return ((r / Vec::groups) * (d4 / 4) + c / 4) * Vec::width + (r % Vec::groups) * 4 + c % 4;
}

// out[r * stride + j] = q_r . k_j for N * Vec::groups rows and J (a multiple of 4) keys of d4
// floats; D is d4, or 0 where it is known late. As many lines are called as the keys' elements of
// Size bytes fill.
template <int N, int J, int D, int Size>
inline void dots(const float* q, int d4, const float* const* k, float* out, int stride,
                 Ahead& ahead) {
  constexpr int kRun = D ? 32 : 4, kLines = J * Size / 16, kEvery = kLines ? 4 : 8;
  Vec acc[N][J];
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < J; ++j) acc[i][j] = zero();
  const int all = D ? D : d4, step = all / 4 * Vec::width;
  for (int c = 0; c < all; c += kRun) {
#pragma GCC unroll 8
    for (int from = 0; from < kRun; from += 4, q += Vec::width) {
      if ((c + from) % kEvery == 0) ahead.lines(kLines ? kLines : 1);
      Vec x[J];
      for (int j = 0; j < J; ++j) x[j] = repeat4(k[j] + c + from);
      for (int i = 0; i < N; ++i) {
        const Vec y = load(q + i * step);
        for (int j = 0; j < J; ++j) acc[i][j] = fma(y, x[j], acc[i][j]);
      }
    }
  }
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < J; j += 4)
      store_group_sums(out + i * Vec::groups * stride + j, stride, acc[i][j], acc[i][j + 1],
                       acc[i][j + 2], acc[i][j + 3]);
}

// The same for kKeyBlock keys, as many at a time as keep enough sums in flight within the
// registers.
template <int N, int D, int Size>
inline void dots_block(const float* q, int d4, const float* const* k, float* out, int stride,
                       Ahead& ahead) {
  constexpr int J = N * 2 <= kGroupBlock ? 8 : 4;
  for (int j = 0; j < kKeyBlock; j += J) dots<N, J, D, Size>(q, d4, k + j, out + j, stride, ahead);
}

// Where dimension c of a key of d stands among the floats that as_floats() makes of it: a shift and
// a mask tell the even dimensions of bf16 from the odd ones.
template <class T>
inline int float_at(int c, int) {
  return c;
}
// A key as d4 floats: itself where it is that already, else converted into `room`.
inline const float* as_floats(const float* k, int d, int d4, float* room) {
  if (d == d4) return k;
  for (int c = 0; c < d4; ++c) room[c] = c < d ? k[c] : 0;
  return room;
}
template <class T>
inline const float* floats_from(const T* k, int c, int d, int d4, float* room) {
  for (; c + Vec::width <= d; c += Vec::width) store(room + c, load(k + c));
  for (; c < d4; ++c) room[c] = c < d ? to_float(k[c]) : 0;
  return room;
}
template <class T>
inline const float* as_floats(const T* k, int d, int d4, float* room) {
  return floats_from(k, 0, d, d4, room);
}
#if defined(__AVX2__)
template <>
inline int float_at<bf16>(int c, int d) {
  constexpr int pair = 2 * Vec::width;
  return c < d / pair * pair ? c / pair * pair + c % 2 * Vec::width + c % pair / 2 : c;
}
inline const float* as_floats(const bf16* k, int d, int d4, float* room) {
  int c = 0;
  for (Vec even, odd; c + 2 * Vec::width <= d; c += 2 * Vec::width) {
    load_even_odd(k + c, &even, &odd);
    store(room + c, even);
    store(room + c + Vec::width, odd);
  }
  return floats_from(k, c, d, d4, room);
}
#endif

#if defined(__AVX512BF16__)
// The same from bf16 as it stands: a vector holds eight dimensions of Vec::groups query rows, and a
// product takes them in pairs, each rounded into a float32 sum as one multiply-add.
inline int pair_query_at(int r, int c, int d) {
  return ((r / Vec::groups) * (d / 8) + c / 8) * 32 + r % Vec::groups * 8 + c % 8;
}
template <int N, int J, int D>
inline void pair_dots(const bf16* q, int d, const bf16* const* k, float* out, int stride,
                      Ahead& ahead) {
  __m512 acc[N][J];
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < J; ++j) acc[i][j] = _mm512_setzero_ps();
  const int all = D ? D : d, step = all / 8 * 32;
  for (int c = 0; c < all; c += 32) {
#pragma GCC unroll 4
    for (int from = 0; from < 32; from += 8, q += 32) {
      ahead.lines(J / 4);
      __m512bh x[J];
      for (int j = 0; j < J; ++j)
        x[j] = (__m512bh)_mm512_broadcast_i32x4(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(k[j] + c + from)));
      for (int i = 0; i < N; ++i) {
        const __m512bh y = (__m512bh)_mm512_loadu_si512(q + i * step);
        for (int j = 0; j < J; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], y, x[j]);
      }
    }
  }
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < J; j += 4)
      store_group_sums(out + i * Vec::groups * stride + j, stride, {acc[i][j]}, {acc[i][j + 1]},
                       {acc[i][j + 2]}, {acc[i][j + 3]});
}
template <int N, int D>
inline void pair_dots_block(const bf16* q, int d, const bf16* const* k, float* out, int stride,
                            Ahead& ahead) {
  constexpr int J = N * 2 <= kGroupBlock ? 8 : 4;
  for (int j = 0; j < kKeyBlock; j += J) pair_dots<N, J, D>(q, d, k + j, out + j, stride, ahead);
}
#endif

// ---- Values.

// C vectors of a row, in an order of the type's own, which in_order() undoes for what was summed
// in it: bf16 in even and odd columns, which a shift and a mask tell apart.
template <int C, class T>
inline void load_columns(const T* v, Vec (&x)[C]) {
  for (int i = 0; i < C; ++i) x[i] = load(v + i * Vec::width);
}
template <class T, int C>
inline void in_order(Vec (&)[C]) {}
#if defined(__AVX2__)
template <int C>
inline void load_columns(const bf16* v, Vec (&x)[C]) {
  if constexpr (C == 1) {
    x[0] = load(v);
  } else {
    for (int i = 0; i < C; i += 2) load_even_odd(v + i * Vec::width, &x[i], &x[i + 1]);
  }
}
template <>
inline void in_order<bf16, 2>(Vec (&x)[2]) {
  interleave(&x[0], &x[1]);
}
template <>
inline void in_order<bf16, 4>(Vec (&x)[4]) {
  interleave(&x[0], &x[1]);
  interleave(&x[2], &x[3]);
}
#endif

// out[r * os + c..] = out * keep[r] + sum_j p[r * ps + j] v_j for R rows, C vectors of columns, n
// keys.
template <int R, int C, bool Tail, class T>
inline void weighted(const float* p, int ps, const T* const* v, int n, int c, int tail,
                     const float* keep, float* out, int os, Ahead& ahead) {
  Vec acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) acc[r][i] = zero();
  constexpr int kLines = (C * Vec::width * int(sizeof(T)) + 63) / 64;
  for (int j = 0; j < n; ++j) {
    ahead.lines(kLines);
    Vec y[R], x[C];
    for (int r = 0; r < R; ++r) y[r] = splat(p[r * ps + j]);
    if constexpr (Tail)
      x[0] = load_first(v[j] + c, tail);
    else
      load_columns(v[j] + c, x);
    for (int i = 0; i < C; ++i)
      for (int r = 0; r < R; ++r) acc[r][i] = fma(y[r], x[i], acc[r][i]);
  }
  for (int r = 0; r < R; ++r) {
    in_order<T>(acc[r]);
    for (int i = 0; i < C; ++i) {
      float* o = out + r * os + c + i * Vec::width;
      store(o, fma(load(o), splat(keep[r]), acc[r][i]));
    }
  }
}

#if defined(__AVX512F__)
inline constexpr int kValueRows = 8,
                     kWideRows = 4;  // rows whose sums fit the registers, by 2 and 4 columns
#else
inline constexpr int kValueRows = 4, kWideRows = 2;
#endif

template <int R, class T>
inline void weighted_rows(const float* p, int ps, const T* const* v, int n, int d,
                          const float* keep, float* out, int os, Ahead& ahead) {
  constexpr int C = R <= kWideRows ? 4 : 2;
  int c = 0;
  for (; c + C * Vec::width <= d; c += C * Vec::width)
    weighted<R, C, false>(p, ps, v, n, c, 0, keep, out, os, ahead);
  for (; c + Vec::width <= d; c += Vec::width)
    weighted<R, 1, false>(p, ps, v, n, c, 0, keep, out, os, ahead);
  if (c < d) weighted<R, 1, true>(p, ps, v, n, c, d - c, keep, out, os, ahead);
}

}  // namespace
}  // namespace tokops
