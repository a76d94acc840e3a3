// Scores of integer codes by integer products: queries as integers with a scale per row. For
// .isa.cpp files.
#pragma once
#include "attention/packed_rows.h"

namespace tokops {
namespace {

constexpr int kWords = 2 * Vec::width;  // elements of a query in a register

#if defined(__AVX512F__)
// 32 codes as 16-bit integers: dimensions [32 i, 32 i + 32) of a row.
template <Codec C>
inline Ints words(const uint8_t* row, int i) {
  __m256i x;
  if constexpr (C == Codec::int8)
    x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i * 32));
  if constexpr (C == Codec::int4) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i * 16));
    x = _mm256_inserti128_si256(_mm256_castsi128_si256(b), _mm_srli_epi16(b, 4), 1);
    x = _mm256_and_si256(x, _mm256_set1_epi8(15));
  }
  if constexpr (C == Codec::int2) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i * 8));
    x = _mm256_srlv_epi64(_mm256_broadcastq_epi64(b), _mm256_set_epi64x(6, 4, 2, 0));
    x = _mm256_and_si256(x, _mm256_set1_epi8(3));
  }
  return {_mm512_cvtepu8_epi16(x)};
}
inline Ints load_words(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
inline Ints add_products(Ints sum, Ints a, Ints b) {
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))};
}
#elif defined(__AVX2__)
// Sixteen codes as 16-bit integers: dimensions [16 i, 16 i + 16) of a row.
template <Codec C>
inline Ints words(const uint8_t* row, int i) {
  __m128i x;
  if constexpr (C == Codec::int8)
    x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i * 16));
  if constexpr (C == Codec::int4) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i / 2 * 16));
    x = _mm_and_si128(i % 2 ? _mm_srli_epi16(b, 4) : b, _mm_set1_epi8(15));
  }
  if constexpr (C == Codec::int2) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i / 2 * 8));
    const __m128i n = i % 2 ? _mm_set_epi64x(6, 4) : _mm_set_epi64x(2, 0);
    x = _mm_and_si128(_mm_srlv_epi64(_mm_unpacklo_epi64(b, b), n), _mm_set1_epi8(3));
  }
  return {_mm256_cvtepu8_epi16(x)};
}
inline Ints load_words(const int16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))};
}
#endif

#if defined(__AVX2__)
// FloatDots' twin (packed_rows.h). The sums of 256 dimensions fit 32 bits.
template <Codec C>
struct WordDots {
  using Query = int16_t;
  using Sum = Ints;
  static constexpr int kVecs = C == Codec::int8 || Vec::width == 16 ? 1 : 2, kQuery = kWords;
  static constexpr int keys(int rows) { return Vec::width == 16 || rows < 3 ? 4 : 2; }
  static Ints codes(const uint8_t* row, int unit, int i) { return words<C>(row, unit * kVecs + i); }
  static Ints query(const int16_t* q) { return load_words(q); }
  static Ints add(Ints sum, Ints codes, Ints query) { return add_products(sum, codes, query); }
  static Vec floats(Ints sum) { return tokops::floats(sum); }
};
#endif

// Rounds a row of whole vectors to integers of at most `limit` and returns what one stands for; NaN
// where a row is not finite, or too small for it.
inline float round_row(const float* x, int n, float limit, int32_t* out) {
  Vec most = zero(), probe = zero();
  for (int i = 0; i < n; i += Vec::width) {
    const Vec v = load(x + i);
    most = max(most, max(v, zero() - v));
    probe = fma(v, zero(), probe);
  }
  const float top = largest(most), inverse = top > 0 ? limit / top : 0;
  if (sum(probe) != 0 || inverse == INFINITY) return NAN;
  for (int i = 0; i < n; ++i) out[i] = int32_t(std::nearbyint(x[i] * inverse));
  return top / limit;
}

}  // namespace
}  // namespace tokops
