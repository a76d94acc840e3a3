// Attention over integer codes by products of bytes (VNNI). For .isa.cpp files.
#pragma once
#include "attention/packed_dot16.h"

namespace tokops {
namespace {

#if defined(__AVX512VNNI__)
// sum + a * b, four bytes a lane, a unsigned; in a register, for GCC moves sums about.
inline Ints add_bytes(Ints sum, __m512i a, __m512i b) {
  sum.v = _mm512_dpbusd_epi32(sum.v, a, b);
  pin(sum);
  return sum;
}

// ---- Scores. Queries are signed bytes, one or three a dimension, the highest first: three stand
// for 24 bits of the largest element, as many as a float has. A vector holds sixteen dimensions of
// four rows, so that one key's sixteen codes, repeated over the width, meet all of them.
constexpr int kByteRows = 4;    // of one vector
constexpr int kExactBytes = 3;  // of an element that is not to be rounded
constexpr int kFewest = 3;      // rows for which three bytes beat products of floats

// Where byte 0 of dimension c of query row r stands; the next is 64 further.
inline int byte_query_at(int r, int c, int dim, int bytes) {
  return ((r / kByteRows) * (dim / 16) + c / 16) * 64 * bytes + r % kByteRows * 16 + c % 16;
}

// The largest integer of so many signed bytes whose highest is at most 127, all others 0.
constexpr int byte_limit(int bytes) { return 127 << 8 * (bytes - 1); }

// Integers of at most byte_limit(bytes), of sixteen dimensions, as signed bytes: byte 0 to `to`,
// the next 64 behind.
inline void put_bytes(const int32_t* x, int bytes, int8_t* to) {
  __m512i left = _mm512_loadu_si512(x);
  for (int i = bytes - 1; i >= 0; --i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * 64), _mm512_cvtepi32_epi8(left));
    left = _mm512_srai_epi32(_mm512_add_epi32(left, _mm512_set1_epi32(128)), 8);  // signed ones off
  }
}

// The codes of dimensions [32 i + 16 H, 32 i + 16 H + 16), four times.
template <Codec C, int H>
inline __m512i repeated_codes(const uint8_t* row, int i) {
  const auto sixteen = [](const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  if constexpr (C == Codec::int8) return sixteen(row + i * 32 + H * 16);
  if constexpr (C == Codec::int4) {
    const __m512i x = sixteen(row + i * 16);
    return _mm512_and_si512(H ? _mm512_srli_epi16(x, 4) : x, _mm512_set1_epi8(15));
  }
  if constexpr (C == Codec::int2) {
    int64_t x;
    std::memcpy(&x, row + i * 8, 8);
    const __m512i n = H ? _mm512_set4_epi64(6, 4, 6, 4) : _mm512_set4_epi64(2, 0, 2, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(_mm512_set1_epi64(x), n), _mm512_set1_epi8(3));
  }
}

// dots[r * kDots + j] = sum over groups of `size` dimensions (a multiple of 32) of the group's
// scale[g * kTile + j] * q_r . k_j, for kByteRows rows and n keys; up to seven more rows of k are
// read. Sums of 256 dimensions are exact in 32 bits, those of the higher two bytes together too.
// Size is `size`, or 0 where it is known late.
template <Codec C, int Bytes, int Size>
__attribute__((noinline)) void byte_dots(const int8_t* queries, int groups, int size,
                                         const float* scale, const uint8_t* const* k, int n,
                                         float* dots, Ahead& ahead) {
  constexpr int J = Bytes == 1 ? 8 : 4;  // keys whose sums the registers hold
  for (int first = 0; first < n; first += J, k += J, dots += J, scale += J) {
    ahead.call(J);
    const int8_t* q = queries;
    Vec total[J] = {};
    for (int g = 0, i = 0; g < groups; ++g) {
      Ints sum[Bytes][J] = {};
      const auto multiply = [&](auto half) {
        __m512i y[Bytes];
        for (int b = 0; b < Bytes; ++b, q += 64) y[b] = _mm512_loadu_si512(q);
        for (int j = 0; j < J; ++j) {
          const __m512i x = repeated_codes<C, decltype(half)::value>(k[j], i);
          for (int b = 0; b < Bytes; ++b) sum[b][j] = add_bytes(sum[b][j], x, y[b]);
        }
      };
      for (const int end = i + (Size ? Size : size) / 32; i < end; ++i) {
        multiply(Int<0>{});
        multiply(Int<1>{});
      }
      for (int j = 0; j < J; ++j) {
        Vec one = floats(sum[0][j]);
        if constexpr (Bytes == 3) {
          const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(sum[0][j].v, 8), sum[1][j].v);
          one = fma(floats(Ints{high}), splat(256), floats(sum[2][j]));
        }
        total[j] = fma(one, splat(scale[g * kTile + j]), total[j]);
      }
    }
    for (int j = 0; j < J; j += 4)
      store_group_sums(dots + j, kDots, total[j], total[j + 1], total[j + 2], total[j + 3]);
  }
}

// ---- Sums over values. Weights are two bytes, unsigned, of the largest of a tile's: half a unit
// off each, which over 128 keys is 1e-3 of the range of a group's values at the very most. Codes
// are signed here, int8 after its middle of 128 is taken off. A vector holds sixteen dimensions of
// four keys.

// Sixteen bytes of dimensions of four keys, [key][dimension] in, [dimension][key] out, given as
// groups of four dimensions of all four keys.
inline __m512i by_dimension(__m512i x) {
  const __m128i flip = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(flip));
}

// The codes of dimensions [32 i, 32 i + 32) of four keys.
template <Codec C>
inline void codes_of_four(const uint8_t* const* v, int i, __m512i& low, __m512i& high) {
  const auto at = [&](int j, int bytes) {
    return reinterpret_cast<const __m128i*>(v[j] + i * bytes);
  };
  if constexpr (C == Codec::int8) {
    const auto two = [&](int j) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(j, 32)));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(j + 1, 32)));
      return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1),
                              _mm512_set1_epi8(-128));
    };
    const __m512i order =
        _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i a = two(0), b = two(2);
    low = by_dimension(_mm512_permutex2var_epi32(a, order, b));
    high = by_dimension(
        _mm512_permutex2var_epi32(a, _mm512_add_epi32(order, _mm512_set1_epi32(4)), b));
  }
  if constexpr (C == Codec::int4) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128(at(0, 16)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(1, 16)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(2, 16)), 2);
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(3, 16)), 3);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    x = by_dimension(_mm512_permutexvar_epi32(order, x));
    low = _mm512_and_si512(x, _mm512_set1_epi8(15));
    high = _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
  }
  if constexpr (C == Codec::int2) {
    const auto two = [&](int j) {
      return _mm_unpacklo_epi8(_mm_loadl_epi64(at(j, 8)), _mm_loadl_epi64(at(j + 1, 8)));
    };
    const __m128i a = two(0), b = two(2);
    const __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(a, b)),
                                              _mm_unpackhi_epi16(a, b), 1);
    const __m512i both = _mm512_broadcast_i64x4(x);  // eight dimensions by shifts of 0, 2, 4, 6
    const __m512i three = _mm512_set1_epi8(3), zeros = _mm512_setzero_si512();
    const __m512i shift = _mm512_inserti64x4(zeros, _mm256_set1_epi32(2), 1);
    low = _mm512_and_si512(_mm512_srlv_epi32(both, shift), three);
    high = _mm512_and_si512(_mm512_srlv_epi32(both, _mm512_add_epi32(shift, _mm512_set1_epi32(4))),
                            three);
  }
}

template <Codec C>
constexpr int kCodeMiddle = C == Codec::int8 ? 128 : 0;

// Weights of n keys of one row, from 0 to `most` and zero behind n, to two rows of bytes, the
// higher first. Returns what one stands for.
inline float round_weights(const float* w, int n, float most, uint8_t* to) {
  const Vec inverse = splat(most > 0 ? 65535 / most : 0);
  for (int j = 0; j < n; j += Vec::width) {
    const __m512i x = _mm512_cvtps_epi32((load(w + j) * inverse).v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kTile + j), _mm512_cvtepi32_epi8(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j),
                     _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
  }
  return most / 65535;
}

// packed_weighted (packed_rows.h) of R rows over the dimensions [32 i, 32 i + 32): weights are two
// rows of bytes a row, and `unit` is what one of them stands for. Up to three more rows of v are
// read. Sums over a tile are exact in 32 bits.
template <Codec C, int R>
__attribute__((noinline)) void byte_weighted(const uint8_t* w, const float* unit,
                                             const uint8_t* const* v, int n, int i,
                                             const float* keep, const float* add, float* out,
                                             int os, Ahead& ahead) {
  // So many here, of 32 dimensions of four keys, are four whole rows over all dimensions.
  constexpr int kLines = C == Codec::int8 ? 2 : 1;
  Ints sum[2 * R][2];
#pragma GCC unroll 8
  for (int s = 0; s < 2 * R; ++s) sum[s][0].v = sum[s][1].v = _mm512_setzero_si512();
  for (int j = 0; j < n; j += 4) {
    ahead.lines(kLines);
    __m512i low, high;
    codes_of_four<C>(v + j, i, low, high);
#pragma GCC unroll 8
    for (int s = 0; s < 2 * R; ++s) {
      int32_t four;
      std::memcpy(&four, w + s * kTile + j, 4);
      const __m512i y = _mm512_set1_epi32(four);
      sum[s][0] = add_bytes(sum[s][0], y, low);
      sum[s][1] = add_bytes(sum[s][1], y, high);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i all =
          _mm512_add_epi32(_mm512_slli_epi32(sum[2 * r][half].v, 8), sum[2 * r + 1][half].v);
      float* o = out + r * os + i * 32 + half * 16;
      store(o, fma(floats(Ints{all}), splat(unit[r]), fma(load(o), splat(keep[r]), splat(add[r]))));
    }
}

// packed_values (packed_rows.h) over the dimensions [32 from, 32 to).
template <Codec C>
inline void byte_values(const uint8_t* w, const float* unit, int rows, const uint8_t* const* v,
                        int n, int from, int to, const float* keep, const float* add, float* out,
                        int os, Ahead& ahead) {
  in_blocks<4>(rows, [&](int r, auto count) {
    for (int i = from; i < to; ++i)
      byte_weighted<C, decltype(count)::value>(w + 2 * r * kTile, unit + r, v, n, i, keep + r,
                                               add + r, out + r * os, os, ahead);
  });
}
#endif

}  // namespace
}  // namespace tokops
