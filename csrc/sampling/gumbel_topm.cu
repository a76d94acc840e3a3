#include "common/row_law.cuh"
#include "sampling/gumbel_topm.h"

namespace tokops {
namespace {

// An arrival as one number, the largest first: its key, and of equal keys the first token. 0: none.
using Arrival = unsigned long long;

__device__ Arrival arrival(float key, int token) {
  return Arrival(ordered_key(score_key(exact::bits_of(key)))) << 32 | ~uint32_t(token);
}
__device__ int token_of(Arrival a) { return int(~uint32_t(a)); }

// The 64 first arrivals that a warp has seen, in order: lane i holds those at i and 32 + i.
struct WarpArrivals {
  Arrival low = 0, high = 0;

  __device__ Arrival at(int i) const { return __shfl_sync(kFullWarp, i < 32 ? low : high, i % 32); }
  __device__ void add(Arrival a) {
    const int lane = threadIdx.x % 32;
    const int place =
        __popc(__ballot_sync(kFullWarp, low > a)) + __popc(__ballot_sync(kFullWarp, high > a));
    const Arrival last = __shfl_sync(kFullWarp, low, 31);
    const Arrival before_low = __shfl_up_sync(kFullWarp, low, 1);
    const Arrival before_high = __shfl_up_sync(kFullWarp, high, 1);
    if (lane >= place) low = lane == place ? a : before_low;
    if (lane + 32 >= place) high = lane + 32 == place ? a : lane == 0 ? last : before_high;
  }
};

// Whether a token, the same for all lanes, is not to be drawn.
__device__ bool is_excluded(const GumbelTopm& p, int64_t row, int token) {
  bool mine = false;
  for (int i = threadIdx.x % 32; i < p.excluded; i += 32)
    mine |= p.exclude[row * p.excluded + i] == token;
  return __any_sync(kFullWarp, mine);
}

template <class T, bool kMasked>
struct RaceRow {
  const T* at;
  const Bitmask& mask;
  const int32_t* bits;
  __device__ float operator()(int x) const {
    if (kMasked && !is_allowed(mask, bits, x)) return -INFINITY;
    return sane_logit(to_float(at[x]));
  }
};

// The first m of all warps' arrivals, by rank: how many in the other lists come before.
__device__ void write_ranked(const GumbelTopm& p, int64_t row, const Arrival* lists, int i,
                             int* ids) {
  const Arrival a = lists[i];
  if (a == 0) return;
  int rank = 0;
  for (int w = 0; w < kLawWarps && rank < p.m; ++w) {
    const Arrival* list = lists + w * kMostDrawn;
    int from = 0, to = kMostDrawn;  // the first that is not before a
    while (from < to) {
      const int half = (from + to) / 2;
      if (list[half] > a)
        from = half + 1;
      else
        to = half;
    }
    rank += from;
  }
  if (rank < p.m) ids[rank] = token_of(a);
}

// One block per row. Its logits are read twice: for the largest, and for their sum and the race, in
// which a thread takes four tokens at a time, the words of one random number.
template <class T, bool kMasked>
__global__ void __launch_bounds__(kLawThreads) gumbel_topm_kernel(GumbelTopm p) {
  __shared__ LawShared s;
  __shared__ Arrival lists[kLawWarps * kMostDrawn];
  __shared__ int ids[kMostDrawn];
  LawTeam<1> team(s, p.V);
  const int64_t row = blockIdx.x;
  const RaceRow<T, kMasked> logit{static_cast<const T*>(p.logits) + row * p.stride, p.mask,
                                  kMasked ? bits_of_row(p.mask, row) : nullptr};
  const int32_t top = team.largest(logit).key;
  const bool empty = top <= kKeyOfMinusInf;
  RowLaw r;
  r.top = empty ? 0.f : exact::float_of(top >= 0 ? top : (-top) | INT32_MIN);
  WarpArrivals first;
  unsigned long long own = 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int base = warp * 128; base < p.V && !empty; base += kLawWarps * 128) {
    const int x0 = base + 4 * lane;
    const Words words = race_words(p, row, x0 / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float l = x0 + j < p.V ? logit(x0 + j) : -INFINITY;
      own += exact::fixed(raw_weight(r, l));
      const Arrival mine = l > -INFINITY ? arrival(race_key(l, words.at[j]), x0 + j) : 0;
      Arrival least = first.at(p.m - 1);
      for (unsigned left = __ballot_sync(kFullWarp, mine > least); left; left &= left - 1) {
        const Arrival a = __shfl_sync(kFullWarp, mine, __ffs(int(left)) - 1);
        if (a > least && !is_excluded(p, row, token_of(a))) first.add(a);
        least = first.at(p.m - 1);
      }
    }
  }
  lists[warp * kMostDrawn + lane] = first.low;
  lists[warp * kMostDrawn + 32 + lane] = first.high;
  if (threadIdx.x < kMostDrawn) ids[threadIdx.x] = -1;
  const float logz = logz_of(r.top, team.sum(own));  // after its barriers lists and ids are seen
  for (int i = threadIdx.x; i < kLawWarps * kMostDrawn; i += kLawThreads)
    write_ranked(p, row, lists, i, ids);
  __syncthreads();
  if (threadIdx.x == 0) p.logz[row] = logz;
  for (int i = threadIdx.x; i < p.m; i += kLawThreads) {
    p.ids[row * p.m + i] = ids[i];
    p.logp[row * p.m + i] = ids[i] < 0 ? -INFINITY : exact::sub(logit(ids[i]), logz);
  }
}

}  // namespace

void gumbel_topm(const GumbelTopm& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "gumbel_topm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(p.mask.words ? gumbel_topm_kernel<T, true> : gumbel_topm_kernel<T, false>,
           dim3(unsigned(p.rows)), dim3(kLawThreads), 0, q, p);
  });
}

}  // namespace tokops
