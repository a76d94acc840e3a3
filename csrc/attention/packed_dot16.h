// Scores of integer codes by integer products: queries as 16-bit integers with a scale per row. For
// .isa.cpp files.
//
// Rounding a query of 8 or 11 significant bits to 16 changes it by at most 2^-16 of its largest
// element, which is below what its own dtype left of it, and saves the conversion of every code to
// a float.
#pragma once
#include "attention/packed_rows.h"

namespace tokops {
namespace {

#if defined(__AVX2__)
// Sixteen codes as 16-bit integers: dimensions [16 i, 16 i + 16) of a row.
template <Codec C>
inline __m256i words(const uint8_t* row, int i) {
  if constexpr (C == Codec::int8)
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i * 16)));
  if constexpr (C == Codec::int4) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i / 2 * 16));
    const __m128i x = i % 2 ? _mm_srli_epi16(b, 4) : b;
    return _mm256_cvtepu8_epi16(_mm_and_si128(x, _mm_set1_epi8(15)));
  }
  if constexpr (C == Codec::int2) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i / 2 * 8));
    const __m128i n = i % 2 ? _mm_set_epi64x(6, 4) : _mm_set_epi64x(2, 0);
    const __m128i x = _mm_srlv_epi64(_mm_unpacklo_epi64(b, b), n);
    return _mm256_cvtepu8_epi16(_mm_and_si128(x, _mm_set1_epi8(3)));
  }
  return _mm256_setzero_si256();
}

inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__)
  return _mm256_dpwssd_epi32(sum, a, b);
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

// out[j * 4 + r] = sum over groups of scale[g * kStride + j] * (q_r . codes_j in g), without the
// scales if there is one group, for R <= 4 rows and two keys. q: [row][dim] words; the sums of 256
// dimensions fit 32 bits.
template <Codec C, int R>
inline void dot16(const int16_t* q, int dim, int groups, const uint8_t* const* k,
                  const float* scale, int stride, float* out) {
  constexpr int J = 2;
  const int steps = dim / 16 / groups;
  __m256 total[J][4];
  for (int j = 0; j < J; ++j)
    for (int r = 0; r < 4; ++r) total[j][r] = _mm256_setzero_ps();
  for (int g = 0, i = 0; g < groups; ++g) {
    __m256i acc[J][R];
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) acc[j][r] = _mm256_setzero_si256();
    for (const int end = i + steps; i < end; ++i) {
      const __m256i a = words<C>(k[0], i), b = words<C>(k[1], i);
      for (int r = 0; r < R; ++r) {
        const __m256i y =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + r * dim + i * 16));
        acc[0][r] = add_products(acc[0][r], a, y);
        acc[1][r] = add_products(acc[1][r], b, y);
      }
    }
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) {
        const __m256 x = _mm256_cvtepi32_ps(acc[j][r]);
        total[j][r] = groups == 1
                          ? x
                          : _mm256_fmadd_ps(x, _mm256_set1_ps(scale[g * stride + j]), total[j][r]);
      }
  }
  for (int j = 0; j < J; ++j) {
    const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(total[j][0], total[j][1]),
                                    _mm256_hadd_ps(total[j][2], total[j][3]));
    _mm_storeu_ps(out + j * 4, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
  }
}

// s[r * s_stride + j] for any number of rows and n keys (rows of k up to a multiple of four are
// read), times the rows' own scales. room: 4 * n floats, n up to a multiple of four.
template <Codec C>
inline void scores16(const int16_t* q, const float* q_scale, int dim, int rows, int groups,
                     const uint8_t* const* k, int n, const float* scale, int stride, float* room,
                     float* s, int s_stride, Ahead& ahead) {
  in_blocks<4>(rows, [&](int r, auto count) {
    constexpr int R = decltype(count)::value;
    for (int j = 0; j < n; j += 2) {
      ahead.call(2);
      dot16<C, R>(q + r * dim, dim, groups, k + j, scale + j, stride, room + j * 4);
    }
    for (int j = 0; j < n; j += 4) {
      __m128 x[4];
      for (int i = 0; i < 4; ++i) x[i] = _mm_loadu_ps(room + (j + i) * 4);
      _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
      for (int i = 0; i < R; ++i)
        _mm_storeu_ps(s + (r + i) * s_stride + j, _mm_mul_ps(x[i], _mm_set1_ps(q_scale[r + i])));
    }
  });
}
#endif

// Rounds a row to integers of at most `limit` and returns what one stands for; NaN where a row is
// not finite.
inline float round_row(const float* x, int n, float limit, int16_t* out) {
  float top = 0, probe = 0;
  for (int i = 0; i < n; ++i) {
    const float a = std::fabs(x[i]);
    top = a > top ? a : top;
    probe += x[i] * 0;
  }
  if (probe != 0) return NAN;
  const float inverse = top > 0 ? limit / top : 0;
  for (int i = 0; i < n; ++i) out[i] = int16_t(std::nearbyint(x[i] * inverse));
  return top / limit;
}

}  // namespace
}  // namespace tokops
