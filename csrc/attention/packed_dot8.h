// Scores of integer codes by products of bytes (VNNI): queries as signed bytes, a vector holding
// sixteen dimensions of four rows, so that one key's sixteen codes, repeated over the width, meet
// all of them. For .isa.cpp files.
#pragma once
#include "attention/packed_dot16.h"

namespace tokops {
namespace {

#if defined(__AVX512VNNI__)
constexpr int kByteRows = 4, kByteKeys = 8;  // of one vector; whose sums are made together

// Where dimension c of query row r stands.
inline int byte_query_at(int r, int c, int dim) {
  return ((r / kByteRows) * (dim / 16) + c / 16) * 64 + r % kByteRows * 16 + c % 16;
}

// The codes of dimensions [16 i, 16 i + 16), four times.
template <Codec C>
inline __m512i repeated_codes(const uint8_t* row, int i) {
  const auto sixteen = [](const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  if constexpr (C == Codec::int8) return sixteen(row + i * 16);
  if constexpr (C == Codec::int4) {
    const __m512i x = sixteen(row + i / 2 * 16);
    return _mm512_and_si512(i % 2 ? _mm512_srli_epi16(x, 4) : x, _mm512_set1_epi8(15));
  }
  if constexpr (C == Codec::int2) {
    int64_t x;
    std::memcpy(&x, row + i / 2 * 8, 8);
    const __m512i n = i % 2 ? _mm512_set4_epi64(6, 4, 6, 4) : _mm512_set4_epi64(2, 0, 2, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(_mm512_set1_epi64(x), n), _mm512_set1_epi8(3));
  }
}

// dots[(g * kByteRows + r) * kDots + j] = q_r . k_j in group g of `size` dimensions (a multiple of
// 32), for kByteRows rows and n keys; up to kByteKeys - 1 more rows of k are read. Sums of 256
// dimensions are exact in 32 bits, and as floats.
template <Codec C>
__attribute__((noinline)) void byte_dots(const int8_t* queries, int groups, int size,
                                         const uint8_t* const* k, int n, float* dots,
                                         Ahead& ahead) {
  for (int first = 0; first < n; first += kByteKeys, k += kByteKeys, dots += kByteKeys) {
    ahead.call(kByteKeys);
    const int8_t* q = queries;
    for (int g = 0, i = 0; g < groups; ++g) {
      __m512i sum[kByteKeys] = {};
      for (const int end = i + size / 16; i < end; i += 2, q += 128) {
        const __m512i low = _mm512_loadu_si512(q), high = _mm512_loadu_si512(q + 64);
        for (int j = 0; j < kByteKeys; ++j) {
          sum[j] = _mm512_dpbusd_epi32(sum[j], repeated_codes<C>(k[j], i), low);
          sum[j] = _mm512_dpbusd_epi32(sum[j], repeated_codes<C>(k[j], i + 1), high);
        }
      }
      Vec total[kByteKeys];
      for (int j = 0; j < kByteKeys; ++j) total[j] = floats(Ints{sum[j]});
      for (int j = 0; j < kByteKeys; j += 4)
        store_group_sums(dots + g * kByteRows * kDots + j, kDots, total[j], total[j + 1],
                         total[j + 2], total[j + 3]);
    }
  }
}
#endif

}  // namespace
}  // namespace tokops
