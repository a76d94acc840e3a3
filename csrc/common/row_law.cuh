// Rows of weights on CUDA: one block of kLawThreads threads works on one row. Every function here
// is called by the whole block, gives all threads one result, and may be called again at once.
#pragma once
#include "common/cuda.cuh"
#include "common/row_law.h"

namespace tokops {
namespace {

constexpr int kLawThreads = 1024, kLawWarps = kLawThreads / 32;
constexpr int kSumTile = 2 * kLawThreads;
constexpr int kMostSumTiles = kMostVocabulary / kSumTile;

struct LawShared {
  union {
    unsigned long long tiles[kMostSumTiles];
    unsigned long long bins[kDigitBins];
  };
  unsigned long long warps[kLawWarps];
  int found;
};

__device__ __forceinline__ unsigned long long block_sum(LawShared& s, unsigned long long own) {
  own = warp_sum(own);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = own;
  __syncthreads();
  return warp_sum(s.warps[threadIdx.x % 32]);
}

__device__ __forceinline__ int64_t block_max(LawShared& s, int64_t own) {
  own = warp_max(own);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = static_cast<unsigned long long>(own);
  __syncthreads();
  return warp_max(int64_t(s.warps[threadIdx.x % 32]));
}

// The largest of all logits, the first token that has it, and that token's key.
struct Largest {
  int32_t key;
  int token;
};
template <class Logit>
__device__ Largest largest_logit(LawShared& s, int count, const Logit& logit) {
  int64_t best = INT64_MIN;
#pragma unroll 8
  for (int x = threadIdx.x; x < count; x += kLawThreads) {
    const int64_t key = score_key(exact::bits_of(logit(x)));
    const int64_t own = key * (int64_t(1) << 32) + (kMostVocabulary - x);
    best = own > best ? own : best;
  }
  best = block_max(s, best);
  return {int32_t(best >> 32), kMostVocabulary - int(best & 0xffffffff)};
}

// Sum of integer weights f(x) over all tokens; s.tiles keeps it by tiles, for find_token.
template <class F>
__device__ unsigned long long sum_tiles(LawShared& s, int count, const F& f) {
  const int tiles = (count + kSumTile - 1) / kSumTile, lane = threadIdx.x % 32;
  __syncthreads();
  unsigned long long all = 0;
  for (int tile = threadIdx.x / 32; tile < tiles; tile += kLawWarps) {
    const int x0 = tile * kSumTile + lane, x1 = min(count, (tile + 1) * kSumTile);
    unsigned long long own = 0;
#pragma unroll 8
    for (int x = x0; x < x1; x += 32) own += f(x);
    own = warp_sum(own);
    if (lane == 0) s.tiles[tile] = own;
    all += own;
  }
  return block_sum(s, lane == 0 ? all : 0);
}

// The first token whose running sum is more than t; t is less than what sum_tiles returned for f.
template <class F>
__device__ int find_token(LawShared& s, int count, unsigned long long t, const F& f) {
  __syncthreads();
  int tile = 0;
  while (s.tiles[tile] <= t) t -= s.tiles[tile++];
  const int lane = threadIdx.x % 32, x = tile * kSumTile + 2 * int(threadIdx.x);
  const unsigned long long first = x < count ? f(x) : 0, second = x + 1 < count ? f(x + 1) : 0;
  unsigned long long upto = first + second;
  for (int o = 1; o < 32; o *= 2) {
    const unsigned long long other = __shfl_up_sync(kFullWarp, upto, o);
    if (lane >= o) upto += other;
  }
  if (lane == 31) s.warps[threadIdx.x / 32] = upto;
  __syncthreads();
  unsigned long long before = upto - first - second;
  for (int w = 0; w < int(threadIdx.x) / 32; ++w) before += s.warps[w];
  if (before <= t && t < before + first + second) s.found = x + (t < before + first ? 0 : 1);
  __syncthreads();
  return s.found;
}

// The crossing of `limit` tokens, or of a mass of `limit`, among the tokens inside r.
template <class Logit>
__device__ Crossing find_crossing(LawShared& s, const RowLaw& r, int count, uint64_t limit,
                                  bool mass, const Logit& logit) {
  uint32_t prefix = 0;
  unsigned long long left = limit;
  for (int round = 0; round < 3; ++round) {
    const int shift = digit_shift(round), above = round ? digit_shift(round - 1) : 32;
    __syncthreads();
    for (int i = threadIdx.x; i < kDigitBins; i += kLawThreads) s.bins[i] = 0;
    __syncthreads();
    for (int x = threadIdx.x; x < count; x += kLawThreads) {
      const float l = logit(x);
      const int32_t key = score_key(exact::bits_of(l));
      const uint32_t u = ordered_key(key);
      if (!inside(r, key, x) || (round && u >> above != prefix)) continue;
      const unsigned long long own = mass ? exact::fixed(raw_weight(r, l)) : 1;
      atomicAdd(&s.bins[(u >> shift) & ((1u << (above - shift)) - 1)], own);
    }
    __syncthreads();
    int bin = (1 << (above - shift)) - 1;
    while (bin >= 0 && s.bins[bin] < left) left -= s.bins[bin--];
    if (bin < 0) return {false, 0, 0};
    prefix = prefix << (above - shift) | uint32_t(bin);
  }
  const int32_t key = key_of_ordered(prefix);
  unsigned long long one = 1;
  if (mass) one = exact::fixed(raw_weight(r, exact::float_of(key >= 0 ? key : (-key) | INT32_MIN)));
  return {one > 0, key, one > 0 ? (left + one - 1) / one : 0};
}

// Leaves only the first tokens of r that the crossing asks for.
template <class Logit>
__device__ void cut_at(LawShared& s, RowLaw* r, int count, const Crossing& c, const Logit& logit) {
  if (!c.found) return;
  const auto tie = [&](int x) -> unsigned long long {
    const int32_t key = score_key(exact::bits_of(logit(x)));
    return key == c.key && inside(*r, key, x);
  };
  const unsigned long long ties = sum_tiles(s, count, tie);
  const int last = find_token(s, count, (c.ties < ties ? c.ties : ties) - 1, tie);
  r->cut_key = c.key;
  r->last = last;
}

// The law of a row of sane logits and the sum of its weights in units of 2^-40; no weight at all:
// 0. s.tiles keeps the sums of fixed(weight).
template <class Logit>
__device__ unsigned long long weigh_row(LawShared& s, RowLaw* r, int count, const LawSettings& set,
                                        const Logit& logit) {
  *r = RowLaw{};
  const Largest high = largest_logit(s, count, logit);
  if (high.key <= kKeyOfMinusInf) return 0;
  r->top = exact::float_of(high.key >= 0 ? high.key : (-high.key) | INT32_MIN);
  if (set.temperature == 0) {
    r->cut_key = high.key;
    r->last = high.token;
  } else {
    r->inverse = __fdiv_rn(1.f, set.temperature);
    if (set.top_k > 0 && set.top_k < count)
      cut_at(s, r, count, find_crossing(s, *r, count, uint64_t(set.top_k), false, logit), logit);
  }
  if (set.temperature != 0 && set.top_p < 1) {
    const unsigned long long all = sum_tiles(s, count, [&](int x) -> unsigned long long {
      const float l = logit(x);
      return inside(*r, score_key(exact::bits_of(l)), x) ? exact::fixed(raw_weight(*r, l)) : 0;
    });
    const uint64_t wanted = nucleus(set.top_p, all);
    cut_at(s, r, count, find_crossing(s, *r, count, wanted, true, logit), logit);
  }
  r->least = set.temperature == 0 ? 0.f : set.min_p;
  return sum_tiles(
      s, count, [&](int x) -> unsigned long long { return exact::fixed(weight(*r, logit(x), x)); });
}

}  // namespace
}  // namespace tokops
