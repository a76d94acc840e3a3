// The two inner products of attention over a tile of rows named by pointers, for .isa.cpp files.
#pragma once
#include <type_traits>

#include "attention/ahead.h"
#include "common/simd.h"

namespace tokops {
namespace {

// Keys scored before their values are read: a tile of both fits the second cache. What the softmax
// of a tile waits for costs as much whatever its length, and wide registers are soon through.
#if defined(__AVX512F__) && !defined(__AMX_BF16__)
constexpr int kTile = 128;
#else
constexpr int kTile = 64;
#endif

template <int N>
struct Int {
  static constexpr int value = N;
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

// ---- Scores. A vector holds some dimensions of Vec::groups query rows, so that the same of a key,
// ---- repeated over the width, meet all of them and no sum leaves its group.

inline constexpr int kLanes = Vec::width / Vec::groups;  // dimensions of a vector
inline constexpr int kKeyBlock = 8;
// Vectors of queries, and keys beside `n` of them, whose sums the registers hold.
#if defined(__AVX512F__)
inline constexpr int kGroupBlock = 4;
constexpr int keys_beside(int n) { return n <= 2 ? 8 : 4; }
#elif defined(__AVX2__)
inline constexpr int kGroupBlock = 6;
constexpr int keys_beside(int n) { return n == 1 ? 8 : n <= 3 ? 4 : 2; }
#else
inline constexpr int kGroupBlock = 2;
constexpr int keys_beside(int n) { return n == 1 ? 8 : 4; }
#endif

// Where dimension c of query row r stands among rows of padded dimension d (a multiple of kLanes).
inline int query_at(int r, int c, int d) {
  return ((r / Vec::groups) * (d / kLanes) + c / kLanes) * Vec::width + (r % Vec::groups) * kLanes +
         c % kLanes;
}

// A key's dimensions from k on, as a product takes them: kCount vectors in an order of the type's
// own, which float_at() tells. Types whose kCount is 0 become floats first.
template <class T>
struct KeyVectors {
  static constexpr int kCount = 0;
};
template <>
struct KeyVectors<float> {
  static constexpr int kCount = 1;
  template <bool>
  static Vec load(const float* k, int) {
    return repeat(k);
  }
};
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
struct KeyVectors<f16> {
  static constexpr int kCount = 1;
  template <bool>
  static Vec load(const f16* k, int) {
    return tokops::load(k);
  }
};
alignas(32) constexpr uint32_t kUpperHalves[] = {~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu,
                                                 ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu};
template <>
struct KeyVectors<bf16> {
  static constexpr int kCount = 2;
  // Crowded: no register is free for the mask.
  template <bool Crowded>
  static Vec load(const bf16* k, int i) {
    Vec even, odd;
    load_even_odd(k, &even, &odd);
    if (!Crowded || i == 0) return i ? odd : even;
    const uint32_t* mask = kUpperHalves;
    asm("" : "+r"(mask));
    return {_mm256_and_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(k)),
                          _mm256_load_ps(reinterpret_cast<const float*>(mask)))};
  }
};
#endif
template <class T>
constexpr int kKeyStep = KeyVectors<T>::kCount * kLanes;

// out[r * stride + j] = q_r . k_j for N * Vec::groups rows and J keys of d elements, a multiple of
// kKeyStep<T>; D is d, or 0 where it is known late. As many lines are called as the keys' elements
// of Size bytes fill.
template <int N, int J, int D, int Size, class T>
inline void dots(const float* q, int d, const T* const* k, float* out, int stride, Ahead& ahead) {
  constexpr int kStep = kKeyStep<T>, kVecs = KeyVectors<T>::kCount,
                kRun = D && !kFewRegisters ? 32 : kStep;
  constexpr int kLines = J * kStep * Size / 64, kEvery = kLines ? kStep : 64 / (J * Size);
  constexpr bool kCrowded = N * J + N + 1 >= 16;
  Vec acc[N][J];
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < J; ++j) acc[i][j] = zero();
  const int all = D ? D : d, step = all / kLanes * Vec::width;
  for (int c = 0; c < all; c += kRun) {
#pragma GCC unroll 8
    for (int from = 0; from < kRun; from += kStep) {
      if ((c + from) % kEvery == 0) ahead.lines(kLines ? kLines : 1);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v, q += Vec::width) {
        if constexpr (kFewRegisters && N < J) {
          Vec y[N];
          for (int i = 0; i < N; ++i) y[i] = load(q + i * step);
          for (int i = 0; i < N; ++i) pin(y[i]);
          for (int j = 0; j < J; ++j) {
            const Vec x = KeyVectors<T>::template load<kCrowded>(k[j] + c + from, v);
            for (int i = 0; i < N; ++i) acc[i][j] = fma(y[i], x, acc[i][j]);
          }
        } else {
          Vec x[J];
          for (int j = 0; j < J; ++j)
            x[j] = KeyVectors<T>::template load<false>(k[j] + c + from, v);
          for (int i = 0; i < N; ++i) {
            const Vec y = load(q + i * step);
            for (int j = 0; j < J; ++j) acc[i][j] = fma(y, x[j], acc[i][j]);
          }
        }
      }
    }
  }
  static_assert(J % 4 == 0 || (J == 2 && Vec::groups == 1));
  if constexpr (J == 2) {  // two rows fill four sums
    for (int i = 0; i < N; i += 2) {
      const int next = i + 1 < N ? i + 1 : i;
      float sums[4];
      store_group_sums(sums, 0, acc[i][0], acc[i][1], acc[next][0], acc[next][1]);
      std::memcpy(out + i * stride, sums, 8);
      std::memcpy(out + next * stride, sums + (next - i) * 2, 8);
    }
  } else {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < J; j += 4)
        store_group_sums(out + i * Vec::groups * stride + j, stride, acc[i][j], acc[i][j + 1],
                         acc[i][j + 2], acc[i][j + 3]);
  }
}

// The same for kKeyBlock keys.
template <int N, int D, int Size, class T>
inline void dots_block(const float* q, int d, const T* const* k, float* out, int stride,
                       Ahead& ahead) {
  constexpr int J = keys_beside(N);
  for (int j = 0; j < kKeyBlock; j += J) dots<N, J, D, Size>(q, d, k + j, out + j, stride, ahead);
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
  constexpr int J = keys_beside(N);
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
inline void in_order(Vec (&x)[C]) {
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, bf16>)
    for (int i = 0; i + 1 < C; i += 2) interleave(&x[i], &x[i + 1]);
#endif
}
#if defined(__AVX2__)
template <int C>
inline void load_columns(const bf16* v, Vec (&x)[C]) {
  if constexpr (C == 1) {
    x[0] = load(v);
  } else {
    for (int i = 0; i < C; i += 2) load_even_odd(v + i * Vec::width, &x[i], &x[i + 1]);
  }
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
    Vec x[C];
    if constexpr (Tail)
      x[0] = load_first(v[j] + c, tail);
    else
      load_columns(v[j] + c, x);
    if constexpr (kFewRegisters && R > C) {
      for (int r = 0; r < R; ++r) {
        Vec y = splat(p[r * ps + j]);
        pin(y);
        for (int i = 0; i < C; ++i) acc[r][i] = fma(y, x[i], acc[r][i]);
      }
    } else {
      Vec y[R];
      for (int r = 0; r < R; ++r) y[r] = splat(p[r * ps + j]);
      for (int i = 0; i < C; ++i)
        for (int r = 0; r < R; ++r) acc[r][i] = fma(y[r], x[i], acc[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    in_order<T>(acc[r]);
    for (int i = 0; i < C; ++i) {
      float* o = out + r * os + c + i * Vec::width;
      store(o, fma(load(o), splat(keep[r]), acc[r][i]));
    }
  }
}

// Rows whose sums the registers hold, by two columns at least, and columns beside `rows` of them.
#if defined(__AVX512F__)
template <class T>
constexpr int kValueRows = 8;
template <class T>
constexpr int columns_beside(int rows) {
  return rows <= 4 ? 4 : 2;
}
#elif defined(__AVX2__)
template <class T>
constexpr bool kPairs = std::is_same_v<T, bf16>;
template <class T>
constexpr int kValueRows = kPairs<T> ? 6 : 4;
template <class T>
constexpr int columns_beside(int rows) {
  return rows == 1 ? 8 : rows == 2 || (rows == 3 && !kPairs<T>) ? 4 : 2;
}
#else
template <class T>
constexpr int kValueRows = 4;
template <class T>
constexpr int columns_beside(int rows) {
  return rows <= 2 ? 4 : 2;
}
#endif

template <int R, class T>
inline void weighted_rows(const float* p, int ps, const T* const* v, int n, int d,
                          const float* keep, float* out, int os, Ahead& ahead) {
  constexpr int kWide = columns_beside<T>(R);
  int c = 0;
  const auto columns = [&](auto count) {
    constexpr int C = decltype(count)::value;
    for (; c + C * Vec::width <= d; c += C * Vec::width)
      weighted<R, C, false>(p, ps, v, n, c, 0, keep, out, os, ahead);
  };
  columns(Int<kWide>{});
  if constexpr (kWide == 8) columns(Int<4>{});
  columns(Int<1>{});
  if (c < d) weighted<R, 1, true>(p, ps, v, n, c, d - c, keep, out, os, ahead);
}

}  // namespace
}  // namespace tokops
