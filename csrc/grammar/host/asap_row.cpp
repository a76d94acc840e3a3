#include "asap_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tokops::grammar {
namespace {

constexpr float kNoLogit = -std::numeric_limits<float>::infinity();
constexpr float kMostLogit = std::numeric_limits<float>::max();

struct Row {
  const float* logits;
  int32_t count;
  const int32_t* mask;  // nullptr: every token is legal
  size_t words;
};

#define TOKOPS_LANES 4
namespace base {
#include "asap_row.inl"
}
#undef TOKOPS_LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TOKOPS_LANES 8
namespace avx2 {
#include "asap_row.inl"
}
#pragma GCC pop_options
#undef TOKOPS_LANES
#define TOKOPS_LANES 16
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
namespace avx512 {
#include "asap_row.inl"
}
#pragma GCC pop_options

const int kIsa = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl")
                     ? 2
                 : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1
                                                                                   : 0;
#define TOKOPS_PASS(name, ...)             \
  (kIsa == 2   ? avx512::name(__VA_ARGS__) \
   : kIsa == 1 ? avx2::name(__VA_ARGS__)   \
               : base::name(__VA_ARGS__))
#else
#define TOKOPS_PASS(name, ...) base::name(__VA_ARGS__)
#endif

constexpr int32_t kChunk = 1024;  // tokens that are listed at once, a multiple of 32

// Appends the listed tokens to `out`, and to its rest the weights of the others if asked.
void list_all(const Row& row, float top, float bound, bool add_rest, RowTokens& out) {
  int32_t tokens[kChunk];
  double weights[kChunk];
  out.tokens.clear();
  out.weights.clear();
  out.rest = 0;
  for (int32_t t = 0; t < row.count; t += kChunk) {
    const int32_t end = std::min(row.count - t, kChunk) + t;
    const int32_t n =
        TOKOPS_PASS(list_tokens, row, t, end, top, bound, add_rest, tokens, weights, out.rest);
    out.tokens.insert(out.tokens.end(), tokens, tokens + n);
    out.weights.insert(out.weights.end(), weights, weights + n);
  }
}

}  // namespace

RowSums row_sums(const float* logits, int32_t count, const int32_t* mask, size_t words) {
  const Row row{logits, count, mask, words};
  RowSums sums{TOKOPS_PASS(largest, row), 0, 0, 0};
  if (sums.top > kNoLogit) TOKOPS_PASS(add_up, row, sums);
  return sums;
}

RowTokens row_tokens(const float* logits, int32_t count, const int32_t* mask, size_t words,
                     const RowSums& sums, double least) {
  const Row row{logits, count, mask, words};
  const float bound = least > 0 ? float(sums.top + std::log(least)) : kNoLogit;
  RowTokens out;
  list_all(row, sums.top, bound, false, out);
  double listed = 0;
  for (const double w : out.weights) listed += w;
  out.rest = std::max(sums.legal - listed, 0.0);
  if (int64_t(out.tokens.size()) == sums.legal_count) {
    out.rest = 0;
  } else if (out.rest < 1e-6 * sums.legal) {  // the difference has lost its digits
    list_all(row, sums.top, bound, true, out);
  }
  return out;
}

void row_mask(float* logits, int32_t count, const int32_t* mask, size_t words) {
  if (mask != nullptr) TOKOPS_PASS(forbid, logits, Row{logits, count, mask, words});
}

}  // namespace tokops::grammar
