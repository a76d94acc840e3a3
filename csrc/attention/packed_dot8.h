// Attention over integer codes by products of bytes (VNNI, in 512 or 256 bits). For .isa.cpp files.
#pragma once
#include "attention/packed_dot16.h"

namespace tokops {
namespace {

// TOKOPS_BYTES_BY_WORDS: the same sums out of what every CPU with AVX2 has, for tests.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(TOKOPS_BYTES_BY_WORDS)
#define TOKOPS_BYTE_PRODUCTS
// sum + a * b, four bytes a lane, a unsigned; in a register, for GCC moves sums about.
inline Ints add_bytes(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  sum.v = _mm512_dpbusd_epi32(sum.v, a.v, b.v);
#elif defined(__AVXVNNI__)
  sum.v = _mm256_dpbusd_avx_epi32(sum.v, a.v, b.v);
#else
  const __m256i low = _mm256_madd_epi16(_mm256_and_si256(a.v, _mm256_set1_epi16(255)),
                                        _mm256_srai_epi16(_mm256_slli_epi16(b.v, 8), 8));
  const __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(a.v, 8), _mm256_srai_epi16(b.v, 8));
  sum.v = _mm256_add_epi32(sum.v, _mm256_add_epi32(low, high));
#endif
  pin(sum);
  return sum;
}

#if defined(__AVX512VNNI__)
inline Ints load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
inline Ints splat_word(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
template <int N>
inline Ints shift_up(Ints a) {
  return {_mm512_slli_epi32(a.v, N)};
}
// Bits of every byte, from `shift` on.
inline Ints bits_of_bytes(Ints a, int shift, int bits) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, shift), _mm512_set1_epi8(char(bits)))};
}
inline Ints nearest(Vec x) { return {_mm512_cvtps_epi32(x.v)}; }
// The lowest byte of every lane.
inline void store_low_bytes(Ints x, void* to) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x.v));
}
inline Ints shift_down(Ints a, int n) { return {_mm512_srai_epi32(a.v, n)}; }
#else
inline Ints load_bytes(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
inline Ints splat_word(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
template <int N>
inline Ints shift_up(Ints a) {
  return {_mm256_slli_epi32(a.v, N)};
}
inline Ints bits_of_bytes(Ints a, int shift, int bits) {
  return {_mm256_and_si256(_mm256_srli_epi16(a.v, shift), _mm256_set1_epi8(char(bits)))};
}
inline Ints nearest(Vec x) { return {_mm256_cvtps_epi32(x.v)}; }
inline void store_low_bytes(Ints x, void* to) {
  const __m256i first = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m256i y = _mm256_shuffle_epi8(x.v, first);
  _mm_storel_epi64(static_cast<__m128i*>(to),
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
}
inline Ints shift_down(Ints a, int n) { return {_mm256_srai_epi32(a.v, n)}; }
#endif

// ---- Scores. Queries are signed bytes, one or three a dimension, the highest first: three stand
// for 24 bits of the largest element, as many as a float has. A vector holds kByteDims dimensions
// of kByteRows rows, so that one key's codes of them, repeated over the width, meet all rows.
constexpr int kByteWidth = 4 * Vec::width;
constexpr int kByteRows = Vec::groups;  // of one vector
constexpr int kByteDims = kByteWidth / kByteRows;
constexpr int kExactBytes = 3;  // of an element that is not to be rounded
// Rows for which three bytes beat products of floats.
constexpr int kFewest = kByteRows == 1 ? 1 : 3;

// Where byte 0 of dimension c of query row r stands; the next is kByteWidth further.
inline int byte_query_at(int r, int c, int dim, int bytes) {
  return ((r / kByteRows) * (dim / kByteDims) + c / kByteDims) * kByteWidth * bytes +
         r % kByteRows * kByteDims + c % kByteDims;
}

// The largest integer of so many signed bytes whose highest is at most 127, all others 0.
constexpr int byte_limit(int bytes) { return 127 << 8 * (bytes - 1); }

// Integers of at most byte_limit(bytes), of Vec::width dimensions, as signed bytes: byte 0 to `to`,
// the next kByteWidth behind.
inline void put_bytes(const int32_t* x, int bytes, int8_t* to) {
  Ints left = load_bytes(x);
  for (int i = bytes - 1; i >= 0; --i) {
    store_low_bytes(left, to + i * kByteWidth);
    left = shift_down(add(left, splat_word(128)), 8);  // signed ones off
  }
}

// The codes of kByteDims dimensions, from 32 i + kByteDims H on, as often as a vector takes them.
template <Codec C, int H>
inline Ints repeated_codes(const uint8_t* row, int i) {
#if defined(__AVX512VNNI__)
  const auto sixteen = [](const uint8_t* p) {
    return Ints{_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  };
  if constexpr (C == Codec::int8) return sixteen(row + i * 32 + H * 16);
  if constexpr (C == Codec::int4) {
    const Ints x = sixteen(row + i * 16);
    if constexpr (H) return bits_of_bytes(x, 4, 15);
    return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))};
  }
  if constexpr (C == Codec::int2) {
    int64_t x;
    std::memcpy(&x, row + i * 8, 8);
    const __m512i n = H ? _mm512_set4_epi64(6, 4, 6, 4) : _mm512_set4_epi64(2, 0, 2, 0);
    return {_mm512_and_si512(_mm512_srlv_epi64(_mm512_set1_epi64(x), n), _mm512_set1_epi8(3))};
  }
#else
  if constexpr (C == Codec::int8) return load_bytes(row + i * 32);
  if constexpr (C == Codec::int4) {
    const __m256i x = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i * 16)));
    const __m256i n = _mm256_setr_epi64x(0, 0, 4, 4);
    return {_mm256_and_si256(_mm256_srlv_epi64(x, n), _mm256_set1_epi8(15))};
  }
  if constexpr (C == Codec::int2) {
    int64_t x;
    std::memcpy(&x, row + i * 8, 8);
    const __m256i n = _mm256_setr_epi64x(0, 2, 4, 6);
    return {_mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(x), n), _mm256_set1_epi8(3))};
  }
#endif
}

// Vectors of queries whose sums the registers hold beside keys, and keys beside `n` of them.
#if defined(__AVX512VNNI__)
constexpr int byte_vectors(int) { return 1; }
constexpr int byte_keys(int bytes, int) { return bytes == 1 ? 8 : 4; }
#else
constexpr int byte_vectors(int bytes) { return bytes == 1 ? 4 : 2; }
constexpr int byte_keys(int bytes, int n) {
  return bytes > 1 ? 4 / n : n == 1 ? 8 : n == 4 ? 2 : 4;
}
#endif

// dots[r * kDots + j] = sum over groups of `size` dimensions (a multiple of 32) of the group's
// scale[g * kTile + j] * q_r . k_j, for N * kByteRows rows and n keys; up to seven more rows of k
// are read. Sums of 256 dimensions are exact in 32 bits, those of the higher two bytes together
// too. Size is `size`, or 0 where it is known late.
template <Codec C, int Bytes, int N, int Size>
__attribute__((noinline)) void byte_dots(const int8_t* queries, int groups, int size,
                                         const float* scale, const uint8_t* const* k, int n,
                                         float* dots, Ahead& ahead) {
  constexpr int J = byte_keys(Bytes, N);               // keys whose sums the registers hold
  const int next = groups * size * kByteRows * Bytes;  // from a vector of rows to the next
  for (int first = 0; first < n; first += J, k += J, dots += J, scale += J) {
    ahead.call(J);
    const int8_t* q = queries;
    Vec total[N][J] = {};
    for (int g = 0, i = 0; g < groups; ++g) {
      Ints sum[Bytes][N][J] = {};
      const auto multiply = [&](auto half) {
        if constexpr (N == 1) {
          Ints y[Bytes];
          for (int b = 0; b < Bytes; ++b, q += kByteWidth) y[b] = load_bytes(q);
          for (int j = 0; j < J; ++j) {
            const Ints x = repeated_codes<C, decltype(half)::value>(k[j], i);
            for (int b = 0; b < Bytes; ++b) sum[b][0][j] = add_bytes(sum[b][0][j], x, y[b]);
          }
        } else {
          Ints x[J];
          for (int j = 0; j < J; ++j) x[j] = repeated_codes<C, decltype(half)::value>(k[j], i);
          for (int b = 0; b < Bytes; ++b, q += kByteWidth)
            for (int r = 0; r < N; ++r) {
              const Ints y = load_bytes(q + r * next);
              for (int j = 0; j < J; ++j) sum[b][r][j] = add_bytes(sum[b][r][j], x[j], y);
            }
        }
      };
      for (const int end = i + (Size ? Size : size) / 32; i < end; ++i) {
        multiply(Int<0>{});
        if constexpr (kByteDims == 16) multiply(Int<1>{});
      }
      for (int r = 0; r < N; ++r)
        for (int j = 0; j < J; ++j) {
          Vec one = floats(sum[0][r][j]);
          if constexpr (Bytes == 3) {
            const Ints high = add(shift_up<8>(sum[0][r][j]), sum[1][r][j]);
            one = fma(floats(high), splat(256), floats(sum[2][r][j]));
          }
          total[r][j] = fma(one, splat(scale[g * kTile + j]), total[r][j]);
        }
    }
    if constexpr (J == 2) {  // two rows fill four sums
      static_assert(kByteRows == 1 && N % 2 == 0);
      for (int r = 0; r < N; r += 2) {
        float sums[4];
        store_group_sums(sums, 0, total[r][0], total[r][1], total[r + 1][0], total[r + 1][1]);
        std::memcpy(dots + r * kDots, sums, 8);
        std::memcpy(dots + (r + 1) * kDots, sums + 2, 8);
      }
    } else {
      for (int r = 0; r < N; ++r)
        for (int j = 0; j < J; j += 4)
          store_group_sums(dots + r * kByteRows * kDots + j, kDots, total[r][j], total[r][j + 1],
                           total[r][j + 2], total[r][j + 3]);
    }
  }
}

// ---- Sums over values. Weights are two bytes, unsigned, of the largest of a tile's: half a unit
// off each, which over 128 keys is 1e-3 of the range of a group's values at the very most. Codes
// are signed here, int8 after its middle of 128 is taken off. A vector holds Vec::width dimensions
// of four keys.

template <Codec C>
constexpr int kCodeMiddle = C == Codec::int8 ? 128 : 0;

#if defined(__AVX512VNNI__)
constexpr int kValueHalves = 1;  // passes over 32 dimensions
constexpr int kByteValueRows = 4;

// Sixteen bytes of dimensions of four keys, [key][dimension] in, [dimension][key] out, given as
// groups of four dimensions of all four keys.
inline __m512i by_dimension(__m512i x) {
  const __m128i flip = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(flip));
}

// The codes of dimensions [32 i, 32 i + 32) of four keys.
template <Codec C, int>
inline void codes_of_four(const uint8_t* const* v, int i, Ints& low, Ints& high) {
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
    low.v = by_dimension(_mm512_permutex2var_epi32(a, order, b));
    high.v = by_dimension(
        _mm512_permutex2var_epi32(a, _mm512_add_epi32(order, _mm512_set1_epi32(4)), b));
  }
  if constexpr (C == Codec::int4) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128(at(0, 16)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(1, 16)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(2, 16)), 2);
    x = _mm512_inserti32x4(x, _mm_loadu_si128(at(3, 16)), 3);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    x = by_dimension(_mm512_permutexvar_epi32(order, x));
    low.v = _mm512_and_si512(x, _mm512_set1_epi8(15));
    high.v = _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
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
    low.v = _mm512_and_si512(_mm512_srlv_epi32(both, shift), three);
    high.v = _mm512_and_si512(
        _mm512_srlv_epi32(both, _mm512_add_epi32(shift, _mm512_set1_epi32(4))), three);
  }
}

// Sums of codes_of_four's dimensions in their order: from 32 i on, and sixteen further.
template <int>
inline void in_dimensions(Ints&, Ints&) {}
#else
constexpr int kValueHalves = 2;
constexpr int kByteValueRows = 3;  // whose sums, of two bytes and two vectors, the registers hold

// The codes of dimensions 32 i + 8 H + [0, 8) and [16, 24) of four keys: of each of these the first
// four in `low`, the others in `high`.
template <Codec C, int H>
inline void codes_of_four(const uint8_t* const* v, int i, Ints& low, Ints& high) {
  const auto row = [&](int j) {
    const uint8_t* p = v[j] + i * (32 / kCodesOfByte<C>);
    if constexpr (C == Codec::int8) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (C == Codec::int4)
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if constexpr (C == Codec::int2) {
      int64_t x;
      std::memcpy(&x, p, 8);
      return _mm256_set1_epi64x(x);
    }
  };
  const auto two = [&](int j) {  // int2 has eight bytes, which both halves of it are in
    if constexpr (H && C != Codec::int2) return _mm256_unpackhi_epi8(row(j), row(j + 1));
    return _mm256_unpacklo_epi8(row(j), row(j + 1));
  };
  const __m256i a = two(0), b = two(2);
  low.v = _mm256_unpacklo_epi16(a, b);
  high.v = _mm256_unpackhi_epi16(a, b);
  if constexpr (C == Codec::int8) {
    const __m256i middle = _mm256_set1_epi8(-128);
    low.v = _mm256_xor_si256(low.v, middle);
    high.v = _mm256_xor_si256(high.v, middle);
  } else {
    constexpr int kLow = C == Codec::int2 ? 2 * H : 0;
    const __m256i n =
        _mm256_setr_epi32(kLow, kLow, kLow, kLow, kLow + 4, kLow + 4, kLow + 4, kLow + 4);
    const __m256i most = _mm256_set1_epi8(C == Codec::int4 ? 15 : 3);
    low.v = _mm256_and_si256(_mm256_srlv_epi32(low.v, n), most);
    high.v = _mm256_and_si256(_mm256_srlv_epi32(high.v, n), most);
  }
}

template <int>
inline void in_dimensions(Ints& low, Ints& high) {
  const __m256i a = low.v, b = high.v;
  low.v = _mm256_permute2x128_si256(a, b, 0x20);
  high.v = _mm256_permute2x128_si256(a, b, 0x31);
}
#endif

// Weights of n keys of one row, from 0 to `most` and zero behind n, to two rows of bytes, the
// higher first. Returns what one stands for.
inline float round_weights(const float* w, int n, float most, uint8_t* to) {
  const Vec inverse = splat(most > 0 ? 65535 / most : 0);
  for (int j = 0; j < n; j += Vec::width) {
    const Ints x = nearest(load(w + j) * inverse);
    store_low_bytes(x, to + kTile + j);
    store_low_bytes(shift<8>(x), to + j);
  }
  return most / 65535;
}

// packed_weighted (packed_rows.h) of R rows over the dimensions of codes_of_four: weights are two
// rows of bytes a row, and `unit` is what one of them stands for. Up to three more rows of v are
// read. Sums over a tile are exact in 32 bits.
template <Codec C, int R, int H>
__attribute__((noinline)) void byte_weighted(const uint8_t* w, const float* unit,
                                             const uint8_t* const* v, int n, int i,
                                             const float* keep, const float* add_to, float* out,
                                             int os, Ahead& ahead) {
  // So many here, of 32 dimensions of four keys, are four whole rows over all dimensions.
  constexpr int kLines = C == Codec::int8 ? 2 / kValueHalves : 1 - H;
  Ints sum[2 * R][2];
#pragma GCC unroll 8
  for (int s = 0; s < 2 * R; ++s) sum[s][0] = sum[s][1] = splat_word(0);
  for (int j = 0; j < n; j += 4) {
    if constexpr (kLines) ahead.lines(kLines);
    Ints low, high;
    codes_of_four<C, H>(v + j, i, low, high);
#pragma GCC unroll 8
    for (int s = 0; s < 2 * R; ++s) {
      int32_t four;
      std::memcpy(&four, w + s * kTile + j, 4);
      const Ints y = splat_word(four);
      sum[s][0] = add_bytes(sum[s][0], y, low);
      sum[s][1] = add_bytes(sum[s][1], y, high);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    Ints all[2];
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part)
      all[part] = add(shift_up<8>(sum[2 * r][part]), sum[2 * r + 1][part]);
    in_dimensions<H>(all[0], all[1]);
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      float* o = out + r * os + i * 32 + part * 16 + H * 8;
      store(o,
            fma(floats(all[part]), splat(unit[r]), fma(load(o), splat(keep[r]), splat(add_to[r]))));
    }
  }
}

// packed_values (packed_rows.h) over the dimensions [32 from, 32 to).
template <Codec C>
inline void byte_values(const uint8_t* w, const float* unit, int rows, const uint8_t* const* v,
                        int n, int from, int to, const float* keep, const float* add_to, float* out,
                        int os, Ahead& ahead) {
  in_blocks<kByteValueRows>(rows, [&](int r, auto count) {
    constexpr int R = decltype(count)::value;
    for (int i = from; i < to; ++i) {
      const auto pass = [&](auto half) {
        byte_weighted<C, R, decltype(half)::value>(w + 2 * r * kTile, unit + r, v, n, i, keep + r,
                                                   add_to + r, out + r * os, os, ahead);
      };
      pass(Int<0>{});
      if constexpr (kValueHalves == 2) pass(Int<1>{});
    }
  });
}
#endif

}  // namespace
}  // namespace tokops
