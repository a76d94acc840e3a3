// Rows of weights on the CPU, for .isa.cpp files: from logits, their sums and draws from them.
#pragma once
#include "common/row_law.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int kSumBlock = 1024;
constexpr int kMostSumBlocks = kMostVocabulary / kSumBlock;

// Sum of fixed(w[0..n)).
inline uint64_t sum_fixed(const float* w, int n) {
  uint64_t sum = 0;
  int i = 0;
#if defined(__AVX512DQ__)
  __m512i all = _mm512_setzero_si512();
  const __m256 one = _mm256_set1_ps(float(exact::kOne)), low = _mm256_setzero_ps(),
               high = _mm256_set1_ps(2048.f);
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(w + i), low), high);  // NaN: low
    all = _mm512_add_epi64(all, _mm512_cvttps_epi64(_mm256_mul_ps(x, one)));
  }
  sum = uint64_t(_mm512_reduce_add_epi64(all));
#elif defined(__AVX2__)
  __m256i all = _mm256_setzero_si256();
  const __m256d one = _mm256_set1_pd(exact::kOne), shift = _mm256_set1_pd(4503599627370496.0);
  const __m128 low = _mm_setzero_ps(), high = _mm_set1_ps(2048.f);
  for (; i + 4 <= n; i += 4) {
    const __m128 x = _mm_min_ps(_mm_max_ps(_mm_loadu_ps(w + i), low), high);  // NaN: low
    const __m256d whole = _mm256_floor_pd(_mm256_mul_pd(_mm256_cvtps_pd(x), one));
    // Adding 2^52 puts an integer into the mantissa's bits.
    const __m256i bits = _mm256_castpd_si256(_mm256_add_pd(whole, shift));
    all = _mm256_add_epi64(all, _mm256_xor_si256(bits, _mm256_castpd_si256(shift)));
  }
  uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), all);
  sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
#endif
  for (; i < n; ++i) sum += exact::fixed(w[i]);
  return sum;
}

// The largest of x[0..n), of which none is NaN; -inf where there are none.
inline float largest_of(const float* x, int n) {
  Vec high = splat(-INFINITY);
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) high = max(high, load(x + i));
  float top = largest(high);
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Sums of weights as integers, by blocks of tokens: drawing searches the blocks, then one block.
struct BlockSums {
  uint64_t at[kMostSumBlocks];

  template <class F>  // f(x) is the weight of token x
  uint64_t fill(int count, const F& f) {
    uint64_t all = 0;
    float w[kSumBlock];
    for (int x0 = 0, block = 0; x0 < count; x0 += kSumBlock, ++block) {
      const int n = x0 + kSumBlock < count ? kSumBlock : count - x0;
      for (int i = 0; i < n; ++i) w[i] = f(x0 + i);
      all += at[block] = sum_fixed(w, n);
    }
    return all;
  }

  // The first token whose running sum is more than t; t is less than what fill returned.
  template <class F>
  int find(uint64_t t, const F& f) const {
    int block = 0;
    while (at[block] <= t) t -= at[block++];
    for (int x = block * kSumBlock;; ++x) {
      const uint64_t w = exact::fixed(f(x));
      if (w > t) return x;
      t -= w;
    }
  }
};

// Room for one row of V tokens: its logits or weights, other weights, and positions.
struct RowSpace {
  float *row, *weights;
  int32_t* list;
  RowSpace(float* at, int64_t v)
      : row(at), weights(at + v), list(reinterpret_cast<int32_t*>(at + 2 * v)) {}
};

// Looks for the bin, from the top, in which the running sum reaches *left; takes off what is above.
inline int crossed_bin(const uint64_t* bins, int count, uint64_t* left) {
  int bin = count - 1;
  while (bin >= 0 && bins[bin] < *left) *left -= bins[bin--];
  return bin;
}

// Leaves of the tokens inside r only the first that are needed for `limit` tokens or, where weights
// are given, for a mass of `limit`.
inline void cut_row(RowLaw* r, const RowSpace& s, int count, uint64_t limit, bool mass) {
  const auto key_at = [&](int x) { return score_key(exact::bits_of(s.row[x])); };
  const auto amount = [&](int x) -> uint64_t { return mass ? exact::fixed(s.weights[x]) : 1; };
  const auto digit = [](int32_t key, int shift, int bits) {
    return (ordered_key(key) >> shift) & ((1u << bits) - 1);
  };
  uint64_t left = limit, bins[kDigitBins] = {};
  for (int x = 0; x < count; ++x) {
    const int32_t key = key_at(x);
    if (inside(*r, key, x)) bins[digit(key, digit_shift(0), kDigitBits)] += amount(x);
  }
  const int first = crossed_bin(bins, kDigitBins, &left);
  if (first < 0) return;  // there is no more than the limit
  int n = 0;
  for (int x = 0; x < count; ++x) {
    const int32_t key = key_at(x);
    s.list[n] = x;
    n += inside(*r, key, x) & (int(digit(key, digit_shift(0), kDigitBits)) == first);
  }
  for (int round = 1; round < 3; ++round) {
    const int shift = digit_shift(round), bits = digit_shift(round - 1) - shift;
    std::memset(bins, 0, sizeof bins);
    for (int i = 0; i < n; ++i) bins[digit(key_at(s.list[i]), shift, bits)] += amount(s.list[i]);
    const int bin = crossed_bin(bins, 1 << bits, &left);
    int kept = 0;
    for (int i = 0; i < n; ++i) {
      const int x = s.list[i];
      s.list[kept] = x;
      kept += int(digit(key_at(x), shift, bits)) == bin;
    }
    n = kept;
  }
  // All of one key weigh the same; they are in order.
  const uint64_t one = amount(s.list[0]), ties = (left + one - 1) / one;
  r->cut_key = key_at(s.list[0]);
  r->last = s.list[ties - 1];
}

// Turns the sane logits in s.row into weights; returns their sum in units of 2^-40. No weight at
// all: 0.
inline uint64_t weigh_row(const RowSpace& s, int count, const LawSettings& set) {
  RowLaw r;
  float* const row = s.row;
  r.top = largest_of(row, count);
  if (!(r.top > -INFINITY)) {
    std::memset(row, 0, sizeof(float) * size_t(count));
    return 0;
  }
  if (set.temperature == 0) {
    int x = 0;
    while (row[x] != r.top) ++x;
    std::memset(row, 0, sizeof(float) * size_t(count));
    row[x] = 1;
    return uint64_t(exact::kOne);
  }
  r.inverse = 1.f / set.temperature;
  if (set.top_k > 0 && set.top_k < count) cut_row(&r, s, count, uint64_t(set.top_k), false);
  if (set.top_p < 1) {
    for (int i = 0; i < count; ++i) s.weights[i] = weight(r, row[i], i);
    cut_row(&r, s, count, nucleus(set.top_p, sum_fixed(s.weights, count)), true);
  }
  r.least = set.min_p;
  for (int i = 0; i < count; ++i) row[i] = weight(r, row[i], i);
  return sum_fixed(row, count);
}

// Sane floats of one row of logits.
inline void load_logits(const void* logits, DType dtype, int count, float* row) {
  const auto copy = [&](const auto* from) {
    for (int x = 0; x < count; ++x) row[x] = sane_logit(to_float(from[x]));
  };
  if (dtype == DType::f32)
    copy(static_cast<const float*>(logits));
  else if (dtype == DType::bf16)
    copy(static_cast<const bf16*>(logits));
  else
    copy(static_cast<const f16*>(logits));
}

}  // namespace
}  // namespace tokops
