#include "attention/vote_scores.h"
#include "common/cuda.cuh"

namespace tokops {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 3.402823466e38f;

// NaN counts as -inf, +inf as the largest float.
__device__ float sane(float x) { return x != x ? -INFINITY : x < kLargest ? x : kLargest; }

// One block per head: its maximum and 1 / sum of exp, each thread folding its share of the scores.
__global__ void softmax_stats_kernel(VoteScores p) {
  __shared__ float tops[kThreads / 32], sums[kThreads / 32];
  const float* scores = p.scores + int64_t(blockIdx.x) * p.length;
  float top = -INFINITY, sum = 0.f;
  for (int64_t i = threadIdx.x; i < p.length; i += kThreads) {
    const float x = sane(scores[i]);
    if (x > top) {
      sum = sum * (top == -INFINITY ? 0.f : expf(top - x)) + 1.f;
      top = x;
    } else if (x != -INFINITY) {
      sum += expf(x - top);
    }
  }
  const float warp_top = warp_max(top);
  const float warp_total = warp_sum(top == -INFINITY ? 0.f : sum * expf(top - warp_top));
  if (threadIdx.x % 32 == 0) {
    tops[threadIdx.x / 32] = warp_top;
    sums[threadIdx.x / 32] = warp_total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float all = -INFINITY, total = 0.f;
  for (int w = 0; w < kThreads / 32; ++w) all = tops[w] > all ? tops[w] : all;
  for (int w = 0; w < kThreads / 32; ++w)
    total += tops[w] == -INFINITY ? 0.f : sums[w] * expf(tops[w] - all);
  p.stats[2 * int64_t(blockIdx.x)] = all == -INFINITY ? 0.f : all;
  p.stats[2 * int64_t(blockIdx.x) + 1] = total == 0.f ? 0.f : 1.f / total;
}

// One thread per position of a group: reads its heads' scores there once and reduces their votes.
__global__ void votes_kernel(VoteScores p, int64_t blocks) {
  const int64_t group = blockIdx.x / blocks, l = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (l >= p.length) return;
  const int heads = p.Hq / p.groups;
  const float* scores = p.scores + group * heads * p.length + l;
  const float* stats = p.stats + group * heads * 2;
  float votes = 0.f;
  bool seen = false;
  for (int h = 0; h < heads; ++h) {
    const float x = sane(scores[h * p.length]);
    const float share = x == -INFINITY ? 0.f : expf(x - stats[2 * h]) * stats[2 * h + 1];
    votes = p.sum ? votes + share : share > votes ? share : votes;
    seen = seen || x != -INFINITY;
  }
  p.votes[group * p.length + l] = seen ? votes : -INFINITY;
}

}  // namespace

void vote_scores(const VoteScores& p, const Queue& q) {
  const int64_t blocks = (p.length + kThreads - 1) / kThreads;
  launch(softmax_stats_kernel, dim3(unsigned(p.rows * p.Hq)), dim3(kThreads), 0, q, p);
  launch(votes_kernel, dim3(unsigned(p.rows * p.groups * blocks)), dim3(kThreads), 0, q, p, blocks);
}

}  // namespace tokops
