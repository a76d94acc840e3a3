// Rows of weights on CUDA: a team of kBlocks blocks of kLawThreads threads works on one row, each
// block on a run of its tokens. All functions are called by the whole team, give all of its threads
// one result, and may be called again at once.
#pragma once
#include "common/ptx.cuh"
#include "common/row_law.h"

namespace tokops {
namespace {

constexpr int kLawThreads = 1024, kLawWarps = kLawThreads / 32;
constexpr int kLeastTile = 512, kMostTile = 2 * kLawThreads;  // tokens of a tile of sums
constexpr int kMostSumTiles = kMostVocabulary / kMostTile;
constexpr int kClusterBlocks = 8;

struct LawShared {
  union {
    unsigned long long tiles[kMostSumTiles];  // of the block's own tokens
    unsigned long long bins[kDigitBins];
  };
  unsigned long long warps[kLawWarps];
  unsigned long long posted[2][kClusterBlocks];  // what the blocks tell each other
  unsigned long long sums[kClusterBlocks];       // of every block's tokens
  unsigned long long found;
};

// The largest of all logits: its key, and the first token that has it.
struct Largest {
  int32_t key;
  int token;
};

template <int kBlocks>
class LawTeam {
 public:
  // count: tokens of a row.
  __device__ LawTeam(LawShared& shared, int count) : s(shared) {
    tile_ = kLeastTile;
    while (tile_ < kMostTile && count > kBlocks * tile_ * kLawWarps) tile_ *= 2;
    const int tiles = (count + tile_ - 1) / tile_;
    per_ = (tiles + kBlocks - 1) / kBlocks * tile_;
    first_ = rank() * per_;
    last_ = min(count, first_ + per_);
  }

  __device__ static int rank() { return kBlocks == 1 ? 0 : ptx::cluster_rank(); }
  __device__ static bool leads() { return threadIdx.x == 0 && rank() == 0; }
  // A barrier of the team.
  __device__ static void sync() {
    if constexpr (kBlocks == 1) {
      __syncthreads();
    } else {
      ptx::cluster_sync();
    }
  }

  __device__ unsigned long long sum(unsigned long long own) {
    own = block_sum(own);
    if constexpr (kBlocks == 1) return own;
    const unsigned long long* all = exchange(own);
    unsigned long long total = 0;
    for (int r = 0; r < kBlocks; ++r) total += all[r];
    return total;
  }

  template <class Logit>
  __device__ Largest largest(const Logit& logit) {
    float high = -INFINITY;
    int at = kMostVocabulary;
#pragma unroll 8
    for (int x = first_ + int(threadIdx.x); x < last_; x += kLawThreads) {
      const float l = logit(x);
      if (l > high) at = x;
      high = l > high ? l : high;
    }
    const int64_t key = score_key(exact::bits_of(high));
    int64_t best = block_max(key * (int64_t(1) << 32) + (kMostVocabulary - at));
    if constexpr (kBlocks > 1) {
      const unsigned long long* all = exchange(static_cast<unsigned long long>(best));
      for (int r = 0; r < kBlocks; ++r) best = int64_t(all[r]) > best ? int64_t(all[r]) : best;
    }
    return {int32_t(best >> 32), kMostVocabulary - int(best & 0xffffffff)};
  }

  // Sum of integer weights f(x) over all tokens, kept by tiles for find.
  template <class F>
  __device__ unsigned long long sum_tiles(const F& f) {
    const int lane = threadIdx.x % 32;
    __syncthreads();
    unsigned long long own = 0;
    for (int tile = threadIdx.x / 32; first_ + tile * tile_ < last_; tile += kLawWarps) {
      const int x0 = first_ + tile * tile_ + lane;
      const int x1 = min(last_, first_ + (tile + 1) * tile_);
      unsigned long long sum = 0;
#pragma unroll 8
      for (int x = x0; x < x1; x += 32) sum += f(x);
      sum = warp_sum(sum);
      if (lane == 0) s.tiles[tile] = sum;
      own += sum;
    }
    own = block_sum(lane == 0 ? own : 0);
    if constexpr (kBlocks == 1) return own;
    const unsigned long long* all = exchange(own);
    unsigned long long total = 0;
    for (int r = 0; r < kBlocks; ++r) total += all[r];
    if (threadIdx.x < kBlocks) s.sums[threadIdx.x] = all[threadIdx.x];
    return total;
  }

  // The first token whose running sum is more than t; t is less than what sum_tiles returned for f.
  template <class F>
  __device__ int find(unsigned long long t, const F& f) {
    __syncthreads();
    int owner = 0;
    if constexpr (kBlocks > 1)
      while (s.sums[owner] <= t) t -= s.sums[owner++];
    if (owner == rank()) find_own(t, f);
    if constexpr (kBlocks == 1) return int(s.found);
    __syncthreads();
    return int(exchange(s.found)[owner]);
  }

  // Takes w from what sum_tiles kept at token x.
  __device__ void discount(int x, unsigned long long w) {
    if (threadIdx.x != 0) return;
    const int owner = x / per_;
    if constexpr (kBlocks > 1) s.sums[owner] -= w;
    if (owner == rank()) s.tiles[(x - first_) / tile_] -= w;
  }

  // The law of a row of sane logits and the sum of its weights in units of 2^-40; no weight at all:
  // 0. The sums of fixed(weight) are kept for find.
  template <class Logit>
  __device__ unsigned long long weigh(RowLaw* r, const LawSettings& set, const Logit& logit) {
    *r = RowLaw{};
    const Largest high = largest(logit);
    if (high.key <= kKeyOfMinusInf) return 0;
    r->top = exact::float_of(high.key >= 0 ? high.key : (-high.key) | INT32_MIN);
    if (set.temperature == 0) {
      r->cut_key = high.key;
      r->last = high.token;
    } else {
      r->inverse = __fdiv_rn(1.f, set.temperature);
      if (set.top_k > 0) cut(r, uint64_t(set.top_k), false, logit);
      if (set.top_p < 1) {
        const unsigned long long all = sum_tiles(
            [&](int x) -> unsigned long long { return exact::fixed(weight(*r, logit(x), x)); });
        cut(r, nucleus(set.top_p, all), true, logit);
      }
      r->least = set.min_p;
    }
    return sum_tiles(
        [&](int x) -> unsigned long long { return exact::fixed(weight(*r, logit(x), x)); });
  }

 private:
  LawShared& s;
  int tile_, per_;    // tokens of a tile, of a block
  int first_, last_;  // the run of this block
  int turn_ = 0;

  __device__ unsigned long long block_sum(unsigned long long own) {
    own = warp_sum(own);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = own;
    __syncthreads();
    return warp_sum(s.warps[threadIdx.x % 32]);
  }
  __device__ int64_t block_max(int64_t own) {
    own = warp_max(own);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = static_cast<unsigned long long>(own);
    __syncthreads();
    return warp_max(int64_t(s.warps[threadIdx.x % 32]));
  }

  // What the blocks of the team give, by rank. Two rows take turns: one is written only when the
  // barrier after the last use of it has been passed.
  __device__ const unsigned long long* exchange(unsigned long long own) {
    unsigned long long* row = s.posted[turn_];
    turn_ ^= 1;
    if (threadIdx.x < kBlocks) ptx::of_rank(row, int(threadIdx.x))[rank()] = own;
    sync();
    return row;
  }

  // find among the block's own tokens, into s.found.
  template <class F>
  __device__ void find_own(unsigned long long t, const F& f) {
    int tile = 0;
    while (s.tiles[tile] <= t) t -= s.tiles[tile++];
    const int lane = threadIdx.x % 32, begin = first_ + tile * tile_;
    const int end = min(last_, begin + tile_), x = begin + 2 * int(threadIdx.x);
    const unsigned long long first = x < end ? f(x) : 0, second = x + 1 < end ? f(x + 1) : 0;
    unsigned long long upto = first + second;
    for (int o = 1; o < 32; o *= 2) {
      const unsigned long long other = __shfl_up_sync(kFullWarp, upto, o);
      if (lane >= o) upto += other;
    }
    if (lane == 31) s.warps[threadIdx.x / 32] = upto;
    __syncthreads();
    unsigned long long before = upto - first - second;
    for (int w = 0; w < int(threadIdx.x) / 32; ++w) before += s.warps[w];
    if (before <= t && t < before + first + second)
      s.found = static_cast<unsigned long long>(x + (t < before + first ? 0 : 1));
    __syncthreads();
  }

  // Leaves of the tokens inside r only the first that are needed for `limit` tokens, or for a mass
  // of `limit`.
  template <class Logit>
  __device__ void cut(RowLaw* r, uint64_t limit, bool mass, const Logit& logit) {
    const Crossing c = crossing(*r, limit, mass, logit);
    if (!c.found) return;
    const auto tie = [&](int x) -> unsigned long long {
      const int32_t key = score_key(exact::bits_of(logit(x)));
      return key == c.key && inside(*r, key, x);
    };
    const unsigned long long ties = sum_tiles(tie);
    const int last = find((c.ties < ties ? c.ties : ties) - 1, tie);
    r->cut_key = c.key;
    r->last = last;
  }

  template <class Logit>
  __device__ Crossing crossing(const RowLaw& r, uint64_t limit, bool mass, const Logit& logit) {
    uint32_t prefix = 0;
    unsigned long long left = limit;
    for (int round = 0; round < 3; ++round) {
      const int shift = digit_shift(round), above = round ? digit_shift(round - 1) : 32;
      __syncthreads();
      for (int i = threadIdx.x; i < kDigitBins; i += kLawThreads) s.bins[i] = 0;
      __syncthreads();
      for (int x = first_ + int(threadIdx.x); x < last_; x += kLawThreads) {
        const float l = logit(x);
        const int32_t key = score_key(exact::bits_of(l));
        const uint32_t u = ordered_key(key);
        if (!inside(r, key, x) || (round && u >> above != prefix)) continue;
        const unsigned long long own = mass ? exact::fixed(raw_weight(r, l)) : 1;
        atomicAdd(&s.bins[(u >> shift) & ((1u << (above - shift)) - 1)], own);
      }
      add_bins();
      int bin = (1 << (above - shift)) - 1;
      while (bin >= 0 && s.bins[bin] < left) left -= s.bins[bin--];
      if (bin < 0) return {false, 0, 0};
      prefix = prefix << (above - shift) | uint32_t(bin);
    }
    const int32_t key = key_of_ordered(prefix);
    unsigned long long one = 1;
    if (mass)
      one = exact::fixed(raw_weight(r, exact::float_of(key >= 0 ? key : (-key) | INT32_MIN)));
    return {one > 0, key, one > 0 ? (left + one - 1) / one : 0};
  }

  // Bins of the whole team, in every block.
  __device__ void add_bins() {
    sync();
    if constexpr (kBlocks > 1) {
      unsigned long long mine[kDigitBins / kLawThreads];
      for (int j = 0; j < kDigitBins / kLawThreads; ++j) {
        mine[j] = 0;
        for (int other = 0; other < kBlocks; ++other)
          mine[j] += ptx::of_rank(s.bins, other)[j * kLawThreads + int(threadIdx.x)];
      }
      sync();  // all have read what they need
      for (int j = 0; j < kDigitBins / kLawThreads; ++j)
        s.bins[j * kLawThreads + int(threadIdx.x)] = mine[j];
      __syncthreads();
    }
  }
};

// Whether a cluster of blocks is worth it: rows are long, and there are blocks for all of them.
inline bool wants_cluster(const void* kernel, int64_t rows, int64_t tokens) {
  constexpr int64_t kLongRow = 16384, kMostRows = 32;
  return tokens >= kLongRow && rows <= kMostRows && made_for_hopper(kernel);
}

}  // namespace
}  // namespace tokops
