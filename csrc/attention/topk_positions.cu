#include "attention/topk_positions.h"
#include "common/cuda.cuh"

namespace tokops {
namespace {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kItems = 4;  // scores of a thread per tile of the last pass
constexpr int kMostThreads = 1024;

struct Shared {
  int bins[kBins];
  int warp_sums[kMostThreads / 32];
  int counts[kItems * kMostThreads /
             32];  // of one tile, per warp and item: above the cut | at it << 16
  int tile_total;
  uint32_t digit;
  int left, found;
};

// A row's k-th largest key: all above it are taken, and the first `ties` at it.
struct Cut {
  int32_t key;
  int ties;
};

__device__ int32_t key_at(const float* scores, int64_t i) {
  return score_key(__float_as_int(scores[i]));
}

// Keys as unsigned integers, so that digits order them.
__device__ uint32_t ordered(int32_t key) { return uint32_t(key) ^ 0x80000000u; }

// Sum of v over the threads before this one. A barrier must come before the next call.
__device__ int sum_before(int v, int* warp_sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int upto = v;
  for (int o = 1; o < 32; o *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, o);
    if (lane >= o) upto += other;
  }
  if (lane == 31) warp_sums[warp] = upto;
  __syncthreads();
  int before = upto - v;
  for (int w = 0; w < warp; ++w) before += warp_sums[w];
  return before;
}

// Looks for the bin, from the top, that holds the `limit`-th key; false when the bins hold no more
// than that. On success digit and left (how many of that bin's keys are wanted) are set.
__device__ bool find_bin(Shared& s, int bins, int limit) {
  const int per = bins / int(blockDim.x), top = bins - 1 - int(threadIdx.x) * per;
  int own = 0;
  for (int j = 0; j < per; ++j) own += s.bins[top - j];
  if (threadIdx.x == 0) s.found = 0;
  int before = sum_before(own, s.warp_sums);
  for (int j = 0; j < per; ++j) {
    const int here = s.bins[top - j];
    if (before < limit && limit <= before + here) {
      s.digit = uint32_t(top - j);
      s.left = limit - before;
      s.found = 1;
    }
    before += here;
  }
  __syncthreads();
  return s.found != 0;
}

// Radix selection: three rounds over the row, each counting the keys that share the digits found so
// far.
__device__ Cut find_cut(Shared& s, const float* scores, int n, int32_t least, int limit) {
  uint32_t prefix = 0;
  int left = limit;
  for (int shift = 32; shift > 0;) {
    const int above = shift, bits = shift < kDigitBits ? shift : kDigitBits;
    shift -= bits;
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) s.bins[b] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      const int32_t key = key_at(scores, i);
      const uint32_t u = ordered(key);
      if (key >= least && (above == 32 || (u >> above) == prefix))
        atomicAdd(&s.bins[(u >> shift) & ((1u << bits) - 1)], 1);
    }
    __syncthreads();
    if (!find_bin(s, 1 << bits, left)) return {least - 1, 0};  // fewer than wanted: all of them
    prefix = prefix << bits | s.digit;
    left = s.left;
  }
  return {int32_t(prefix ^ 0x80000000u), left};
}

// Prefix sums of the tile's counts in place, by the first warp.
__device__ void scan_counts(Shared& s) {
  const int entries = kItems * int(blockDim.x) / 32, lane = threadIdx.x;
  if (lane >= 32) return;
  const int per = (entries + 31) / 32;
  int own = 0;
  for (int j = 0; j < per; ++j) own += lane * per + j < entries ? s.counts[lane * per + j] : 0;
  int upto = own;
  for (int o = 1; o < 32; o *= 2) {
    const int other = __shfl_up_sync(kFullWarp, upto, o);
    if (lane >= o) upto += other;
  }
  if (lane == 31) s.tile_total = upto;
  int before = upto - own;
  for (int j = 0; j < per && lane * per + j < entries; ++j) {
    const int here = s.counts[lane * per + j];
    s.counts[lane * per + j] = before;
    before += here;
  }
}

// Writes what the cut takes in order of position; returns how many. Tiles need no barrier of the
// block between them: a warp writes counts that it alone read.
__device__ int write_taken(Shared& s, const float* scores, int n, Cut cut, int32_t* out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t earlier = (1u << lane) - 1;
  int above_done = 0, equal_done = 0;
  for (int start = 0; start < n; start += kItems * blockDim.x) {
    uint32_t above[kItems], equal[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int i = start + j * int(blockDim.x) + int(threadIdx.x);
      const int32_t key = i < n ? key_at(scores, i) : kKeyOfNan;
      above[j] = __ballot_sync(kFullWarp, key > cut.key);
      equal[j] = __ballot_sync(kFullWarp, key == cut.key);
      if (lane == 0) s.counts[j * warps + warp] = __popc(above[j]) | __popc(equal[j]) << 16;
    }
    __syncthreads();
    scan_counts(s);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int before = s.counts[j * warps + warp];
      const int a = above_done + (before & 0xffff) + __popc(above[j] & earlier);
      const int e = equal_done + (before >> 16) + __popc(equal[j] & earlier);
      const bool is_above = above[j] >> lane & 1, is_equal = equal[j] >> lane & 1;
      if (is_above || (is_equal && e < cut.ties))
        out[a + (e < cut.ties ? e : cut.ties)] = start + j * int(blockDim.x) + int(threadIdx.x);
    }
    above_done += s.tile_total & 0xffff;
    equal_done += s.tile_total >> 16;
    __syncwarp();  // all lanes have read the warp's counts
  }
  return above_done + (equal_done < cut.ties ? equal_done : cut.ties);
}

// One block per row: three counting rounds find the k-th key, a fourth pass writes positions in
// order.
__global__ void topk_positions_kernel(TopkPositions p) {
  __shared__ Shared s;
  const int64_t row = blockIdx.x;
  const float* scores = p.scores + row * p.length;
  int32_t* out = p.positions + row * p.k_max;
  int n = int(p.length), limit = int(p.k_max);
  if (p.lens && p.lens[row] < n) n = p.lens[row] > 0 ? p.lens[row] : 0;
  if (p.k && p.k[row] < limit) limit = p.k[row] > 0 ? p.k[row] : 0;
  const int32_t least =
      floor_key(p.threshold ? __float_as_int(p.threshold[row]) : int32_t(0xff800000u));
  int count = 0;
  if (limit > 0) {
    const Cut cut = n > limit ? find_cut(s, scores, n, least, limit) : Cut{least - 1, 0};
    count = write_taken(s, scores, n, cut, out);
  }
  for (int64_t i = count + threadIdx.x; i < p.k_max; i += blockDim.x) out[i] = -1;
  if (threadIdx.x == 0) p.counts[row] = count;
}

}  // namespace

void topk_positions(const TopkPositions& p, const Queue& q) {
  int threads = 128;
  while (threads < kMostThreads && threads * kItems < p.length) threads *= 2;
  launch(topk_positions_kernel, dim3(unsigned(p.rows)), dim3(threads), 0, q, p);
}

}  // namespace tokops
