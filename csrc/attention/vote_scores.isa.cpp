#include "attention/vote_scores.h"

#include "common/isa.h"
#include "common/simd.h"

// Pass 1 finds each head's maximum and sum of exp, a block at a time so that memory is read once;
// pass 2 reads all heads of a group at a position and reduces their votes.
namespace tokops {
namespace {

constexpr int64_t kBlock = 2048;
constexpr float kLargest = 3.402823466e38f;

// One maximum and sum of exp(score - maximum), folded block by block.
struct Softmax {
  float top = -INFINITY, sum = 0;

  void fold(const float* x, int64_t n) {
    Vec high = splat(-INFINITY);
    int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) high = max(high, sane(load(x + i)));
    const Vec tail = sane(n > i ? last(x + i, int(n - i)) : splat(-INFINITY));
    const float here = largest(max(high, tail));
    if (here == -INFINITY) return;
    if (here > top) {
      sum *= top == -INFINITY ? 0.f : expf(top - here);
      top = here;
    }
    const Vec base = splat(top);
    Vec part = exp_nonpositive(tail - base);
    for (i = 0; i + Vec::width <= n; i += Vec::width)
      part = part + exp_nonpositive(sane(load(x + i)) - base);
    sum += tokops::sum(part);
  }

  // The last n < width scores, -inf behind them.
  static Vec last(const float* x, int n) {
    float y[Vec::width];
    for (int i = 0; i < Vec::width; ++i) y[i] = i < n ? x[i] : -INFINITY;
    return load(y);
  }
};

void find_stats(const VoteScores& p, int64_t i0, int64_t i1) {
  for (int64_t i = i0; i < i1; ++i) {
    Softmax s;
    for (int64_t l = 0; l < p.length; l += kBlock)
      s.fold(p.scores + i * p.length + l, p.length - l < kBlock ? p.length - l : kBlock);
    p.stats[2 * i] = s.top == -INFINITY ? 0.f : s.top;
    p.stats[2 * i + 1] = s.sum == 0 ? 0.f : 1 / s.sum;
  }
}

// Votes of a group of heads at `width` positions; -inf where none sees.
Vec vote(const VoteScores& p, const float* scores, const float* stats, int heads, int n) {
  Vec high = splat(-INFINITY), votes = zero();
  for (int h = 0; h < heads; ++h) {
    const float* at = scores + h * p.length;
    const Vec x = sane(n == Vec::width ? load(at) : Softmax::last(at, n));
    const Vec share = exp_nonpositive(x - splat(stats[2 * h])) * splat(stats[2 * h + 1]);
    votes = p.sum ? votes + share : max(votes, share);
    high = max(high, x);
  }
  return select_less(high, splat(-kLargest), splat(-INFINITY), votes);
}

void vote_block(const VoteScores& p, int64_t group, int64_t l0, int64_t l1) {
  const int heads = p.Hq / p.groups;
  const float* scores = p.scores + group * heads * p.length;
  const float* stats = p.stats + group * heads * 2;
  float* out = p.votes + group * p.length;
  int64_t l = l0;
  for (; l + Vec::width <= l1; l += Vec::width)
    store(out + l, vote(p, scores + l, stats, heads, Vec::width));
  if (l == l1) return;
  float tail[Vec::width];
  store(tail, vote(p, scores + l, stats, heads, int(l1 - l)));
  for (int i = 0; l + i < l1; ++i) out[l + i] = tail[i];
}

void vote_scores_copy(const VoteScores& p, const Queue& q) {
  q.parallel(p.rows * p.Hq, kBlock * 4 / (p.length + 1) + 1,
             [&](int64_t i0, int64_t i1) { find_stats(p, i0, i1); });
  const int64_t blocks = (p.length + kBlock - 1) / kBlock;
  q.parallel(p.rows * p.groups * blocks, 1, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t l = i % blocks * kBlock;
      vote_block(p, i / blocks, l, l + kBlock < p.length ? l + kBlock : p.length);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(vote_scores, vote_scores_copy, VoteScores)
