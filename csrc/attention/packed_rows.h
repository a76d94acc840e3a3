// The two inner products of attention over packed rows, for .isa.cpp files. Codes are turned into
// floats in registers, once for all query rows of a block; scales and zeros enter per group, not
// per element.
#pragma once
#include "attention/parts.h"
#include "attention/tiles.h"

namespace tokops {
namespace {

// ---- Bytes as vectors of integers, one a lane.
#if defined(__AVX512F__)
struct Ints {
  __m512i v;
};
inline Ints bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// Eight bytes, twice.
inline Ints bytes_twice(const uint8_t* p) {
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(x, x))};
}
// The lower eight lanes shifted by `low`, the upper by `high`.
inline Ints shift_halves(Ints a, int low, int high) {
  const __m512i n = _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
  return {_mm512_srlv_epi32(a.v, n)};
}
template <int N>
inline Ints shift(Ints a) {
  return {_mm512_srli_epi32(a.v, N)};
}
inline Ints mask(Ints a, int bits) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(bits))}; }
inline Vec floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Bytes as the upper bits of float16 (e5m2), or moved into place for it and 2^8 too small (e4m3).
template <bool E4m3>
inline Vec fp8(const uint8_t* p) {
  const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  if (!E4m3) return {_mm512_cvtph_ps(_mm256_slli_epi16(x, 8))};
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x80)), 8);
  const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x7f)), 7);
  return {_mm512_cvtph_ps(_mm256_or_si256(sign, rest))};
}
// Sums of neighbours: of a, of b, within every four lanes.
inline Vec add_pairs(Vec a, Vec b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xdd))};
}
inline void store_sums(float* out, Vec a, Vec b, Vec c, Vec d) {
  const __m512 x = add_pairs(add_pairs(a, b), add_pairs(c, d)).v;
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
}
#elif defined(__AVX2__)
struct Ints {
  __m256i v;
};
inline Ints bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
template <int N>
inline Ints shift(Ints a) {
  return {_mm256_srli_epi32(a.v, N)};
}
inline Ints mask(Ints a, int bits) { return {_mm256_and_si256(a.v, _mm256_set1_epi32(bits))}; }
inline Vec floats(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
template <bool E4m3>
inline Vec fp8(const uint8_t* p) {
  const __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  if (!E4m3) return {_mm256_cvtph_ps(_mm_slli_epi16(x, 8))};
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(x, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_slli_epi16(_mm_and_si128(x, _mm_set1_epi16(0x7f)), 7);
  return {_mm256_cvtph_ps(_mm_or_si128(sign, rest))};
}
#else
struct Ints {
  Vec::I v;
};
inline Ints bytes(const uint8_t* p) { return {Vec::I{p[0], p[1], p[2], p[3]}}; }
template <int N>
inline Ints shift(Ints a) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Vec::I))));
  return {Vec::I(Bits(a.v) >> N)};
}
inline Ints mask(Ints a, int bits) { return {a.v & bits}; }
inline Vec floats(Ints a) { return {__builtin_convertvector(a.v, Vec::V)}; }
template <bool E4m3>
inline Vec fp8(const uint8_t* p) {
  f16 x[4];
  for (int i = 0; i < 4; ++i)
    x[i].bits = E4m3 ? uint16_t((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7) : uint16_t(p[i] << 8);
  return load(x);
}
#endif
#if !defined(__AVX512F__)
inline void store_sums(float* out, Vec a, Vec b, Vec c, Vec d) {
  store_group_sums(out, 0, a, b, c, d);
}
#endif

inline float half_value(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return to_float(f16{bits});
#endif
}

// A unit is what one load of bytes gives: kVecs vectors of codes as floats, vector i for the
// dimensions from offset(unit, i) on. kUnits units make up 32 dimensions.
template <Codec C>
struct Unpack {  // int8 and fp8: a byte a dimension
  static constexpr int kVecs = 1, kUnits = 32 / Vec::width;
  static int offset(int unit, int) { return unit * Vec::width; }
  static void load(const uint8_t* row, int unit, Vec* x) {
    const uint8_t* p = row + unit * Vec::width;
    if constexpr (C == Codec::int8) x[0] = floats(bytes(p));
    if constexpr (C == Codec::e4m3) x[0] = fp8<true>(p);
    if constexpr (C == Codec::e5m2) x[0] = fp8<false>(p);
  }
};
template <>
struct Unpack<Codec::int4> {  // byte j of 16: dimension j, and j + 16 above it
  static constexpr int kVecs = 2, kUnits = 16 / Vec::width;
  static int offset(int unit, int i) {
    return unit / kUnits * 32 + unit % kUnits * Vec::width + i * 16;
  }
  static void load(const uint8_t* row, int unit, Vec* x) {
    const Ints b = bytes(row + unit * Vec::width);
    x[0] = floats(mask(b, 15));
    x[1] = floats(shift<4>(b));
  }
};
template <>
struct Unpack<Codec::int2> {  // byte j of 8: dimensions j, j + 8, j + 16, j + 24
#if defined(__AVX512F__)
  static constexpr int kVecs = 2, kUnits = 1;
  static int offset(int unit, int i) { return unit * 32 + i * 16; }
  static void load(const uint8_t* row, int unit, Vec* x) {
    const Ints b = bytes_twice(row + unit * 8);
    x[0] = floats(mask(shift_halves(b, 0, 2), 3));
    x[1] = floats(mask(shift_halves(b, 4, 6), 3));
  }
#else
  static constexpr int kVecs = 4, kUnits = 8 / Vec::width;
  static int offset(int unit, int i) {
    return unit / kUnits * 32 + unit % kUnits * Vec::width + i * 8;
  }
  static void load(const uint8_t* row, int unit, Vec* x) {
    const Ints b = bytes(row + unit * Vec::width);
    x[0] = floats(mask(b, 3));
    x[1] = floats(mask(shift<2>(b), 3));
    x[2] = floats(mask(shift<4>(b), 3));
    x[3] = floats(shift<6>(b));
  }
#endif
};

template <Codec C>
constexpr int kCodesOfByte = C == Codec::int4   ? 2
                             : C == Codec::int2 ? 4
                                                : 1;

// Units of `dims` dimensions (a multiple of 32, or of 16 for whole bytes).
template <Codec C>
inline int units_of(int dims) {
  return dims * Unpack<C>::kUnits / 32;
}

// f(v, c) for the vectors v of a row in the order in which they are unpacked: v holds the
// dimensions from c on.
template <Codec C, class F>
inline void each_vector(int dim, const F& f) {
  using U = Unpack<C>;
  for (int u = 0; u < units_of<C>(dim); ++u)
    for (int i = 0; i < U::kVecs; ++i) f(u * U::kVecs + i, U::offset(u, i));
}

// Where registers are few: what was loaded from the row is loaded again instead of kept in one.
inline void forget([[maybe_unused]] const uint8_t*& row) {
#if !defined(__AVX512F__)
  asm("" : "+r"(row));
#endif
}

// How queries meet codes: a unit is kVecs vectors, and a vector stands beside kQuery elements of a
// query. This way codes become floats.
template <Codec C>
struct FloatDots {
  using Query = float;
  using Sum = Vec;
  static constexpr int kVecs = Unpack<C>::kVecs, kQuery = Vec::width;
  // Keys whose sums the registers hold for R rows, with the rows' queries and one vector of codes.
#if defined(__AVX512F__)
  static constexpr int keys(int) { return 4; }
#else
  static constexpr int keys(int rows) { return rows < 3 || (rows == 3 && kVecs < 4) ? 4 : 2; }
#endif
  static Vec codes(const uint8_t* row, int unit, int i) {
    Vec x[kVecs];
    Unpack<C>::load(row, unit, x);
    return x[i];
  }
  static Vec query(const float* q) { return load(q); }
  static Vec add(Vec sum, Vec codes, Vec query) { return fma(codes, query, sum); }
  static Vec floats(Vec sum) { return sum; }
};

constexpr int kDots =
    kTile + 8;  // room for the products of a row with a tile's keys, and a few behind

// dots[(g * R + r) * kDots + j] = q_r . k_j in group g, for R rows and n keys; up to three more
// rows of k are read. A group has `units` units; Units is the same, or 0 where it is known late.
// Queries lie vector by vector, `rows` of them side by side.
template <class P, int R, int Units>
__attribute__((noinline)) void packed_dots(const typename P::Query* queries, int rows, int groups,
                                           int units, const uint8_t* const* k, int n, float* dots,
                                           Ahead& ahead) {
  constexpr int J = P::keys(R), kSums = (R * J + 3) / 4 * 4;
  const int step = rows * P::kQuery;
  for (int first = 0; first < n; first += J, k += J, dots += J) {
    ahead.call(J);
    const typename P::Query* q = queries;
    float* to = dots;
    for (int g = 0, u = 0; g < groups; ++g) {
      typename P::Sum sum[R][J] = {};
      for (const int end = u + (Units ? Units : units); u < end; ++u)
        for (int i = 0; i < P::kVecs; ++i, q += step) {
          decltype(P::query(q)) y[R];
          for (int r = 0; r < R; ++r) y[r] = P::query(q + r * P::kQuery);
          for (int r = 0; r < R; ++r) pin(y[r]);
          for (int j = 0; j < J; ++j) {
            const auto x = P::codes(k[j], u, i);
            for (int r = 0; r < R; ++r) {
              sum[r][j] = P::add(sum[r][j], x, y[r]);
              pin(sum[r][j]);
            }
          }
        }
      Vec total[kSums] = {};
      for (int i = 0; i < R * J; ++i) total[i] = P::floats(sum[i / J][i % J]);
      float sums[kSums];
      for (int i = 0; i < kSums; i += 4)
        store_sums(sums + i, total[i], total[i + 1], total[i + 2], total[i + 3]);
      for (int r = 0; r < R; ++r, to += kDots) std::memcpy(to, sums + r * J, J * sizeof(float));
    }
  }
}

// The same for any number of rows, from row `from` on: finish(first, R) after every R of them.
template <class P, class F>
inline void packed_scores(const typename P::Query* q, int from, int rows, int groups, int units,
                          const uint8_t* const* k, int n, float* dots, Ahead& ahead,
                          const F& finish) {
  in_blocks<4>(rows - from, [&](int i, auto count) {
    constexpr int R = decltype(count)::value, kUsual = 64 / (P::kVecs * P::kQuery);
    const int r = from + i;
    const auto multiply = units == kUsual ? packed_dots<P, R, kUsual> : packed_dots<P, R, 0>;
    multiply(q + r * P::kQuery, rows, groups, units, k, n, dots, ahead);
    finish(r, R);
  });
}

// out[r * os + d] = out * keep[r] + add[r] + sum_j w[r * kTile + j] code_j[d] over the dimensions
// of N units.
template <Codec C, int R, int N>
__attribute__((noinline)) void packed_weighted(const float* w, const uint8_t* const* v, int n,
                                               int unit, const float* keep, const float* add,
                                               float* out, int os, Ahead& ahead) {
  using U = Unpack<C>;
  // So many here, of four keys, are four whole rows over all dimensions.
  constexpr int kBytes = 4 * N * 32 / (kCodesOfByte<C> * U::kUnits), kLines = (kBytes + 63) / 64;
  Vec acc[R][N * U::kVecs];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < N * U::kVecs; ++i) acc[r][i] = splat(add[r]);
  for (int j = 0; j < n;) {
    ahead.lines(kLines);
    const int end = n - j < 4 ? n : j + 4;
#pragma GCC unroll 1  // or the sums of several keys leave the registers
    for (; j < end; ++j) {
      Vec y[R];
      for (int r = 0; r < R; ++r) y[r] = splat(w[r * kTile + j]);
      const uint8_t* row = v[j];
      for (int i = 0; i < N; ++i)
        for (int m = 0; m < U::kVecs; ++m) {
          if (U::kVecs == 2) forget(row);
          const Vec x = FloatDots<C>::codes(row, unit + i, m);
          for (int r = 0; r < R; ++r) {
            Vec& sum = acc[r][i * U::kVecs + m];
            sum = fma(y[r], x, sum);
          }
        }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < N * U::kVecs; ++i) {
      float* o = out + r * os + U::offset(unit + i / U::kVecs, i % U::kVecs);
      store(o, fma(load(o), splat(keep[r]), acc[r][i]));
    }
}

// The same for any number of rows over the units [unit, end).
template <Codec C>
inline void packed_values(const float* w, int rows, const uint8_t* const* v, int n, int unit,
                          int end, const float* keep, const float* add, float* out, int os,
                          Ahead& ahead) {
  constexpr int kVecs = Unpack<C>::kVecs;
#if defined(__AVX512F__)
  constexpr int kRows = 8,
                kWide = 4;  // rows whose sums the registers hold, by two and four vectors
#else
  constexpr int kRows = kVecs == 4 ? 2 : 4, kWide = 3;
#endif
  in_blocks<kRows>(rows, [&](int r, auto count) {
    constexpr int R = decltype(count)::value, kSums = R <= kWide ? 4 : 2,
                  N = kSums > kVecs ? kSums / kVecs : 1;
    int u = unit;
    for (; u + N <= end; u += N)
      packed_weighted<C, R, N>(w + r * kTile, v, n, u, keep + r, add + r, out + r * os, os, ahead);
    for (; u < end; ++u)
      packed_weighted<C, R, 1>(w + r * kTile, v, n, u, keep + r, add + r, out + r * os, os, ahead);
  });
}

// f(Unpack's codec) for a packed codec known at run time.
template <class F>
inline void with_codec(Codec c, const F& f) {
  switch (c) {
    case Codec::int8:
      return f(std::integral_constant<Codec, Codec::int8>{});
    case Codec::int4:
      return f(std::integral_constant<Codec, Codec::int4>{});
    case Codec::int2:
      return f(std::integral_constant<Codec, Codec::int2>{});
    case Codec::e4m3:
      return f(std::integral_constant<Codec, Codec::e4m3>{});
    case Codec::e5m2:
      return f(std::integral_constant<Codec, Codec::e5m2>{});
    case Codec::full:
      return;
  }
}

// In place: Walsh-Hadamard transform of blocks of the largest power of two that divides d, scaled
// to be its own inverse.
inline void hadamard_row(float* x, int d) {
  const int n = d & -d;
  for (int h = 1; h < n; h *= 2)
    for (int i = 0; i < d; i += 2 * h)
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
  const float scale = 1 / std::sqrt(float(n));
  for (int i = 0; i < d; ++i) x[i] *= scale;
}

}  // namespace
}  // namespace tokops
