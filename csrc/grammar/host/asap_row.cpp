#include "asap_row.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TOKOPS_SETS 1  // instruction sets beside that of the compiler's flags
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string_view>

namespace tokops::grammar {
namespace {

constexpr float kNoLogit = -std::numeric_limits<float>::infinity();
constexpr float kMostLogit = std::numeric_limits<float>::max();
constexpr int32_t kChunk = 1024;  // tokens that are listed at once, a multiple of 32

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

#if TOKOPS_SETS
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

// What this CPU has; TOKOPS_CPU_ISA lowers it, as it does for the kernels.
const int kIsa = [] {
  const char* named = std::getenv("TOKOPS_CPU_ISA");
  const std::string_view most = named == nullptr ? "" : named;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return most == "base" || !avx2 ? 0 : most == "avx2" || !avx512 ? 1 : 2;
}();
#define TOKOPS_PASS(name, ...)             \
  (kIsa == 2   ? avx512::name(__VA_ARGS__) \
   : kIsa == 1 ? avx2::name(__VA_ARGS__)   \
               : base::name(__VA_ARGS__))
#else
#define TOKOPS_PASS(name, ...) base::name(__VA_ARGS__)
#endif

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
  const float bound = std::max(float(sums.top + std::log(least)), -kMostLogit);
  RowTokens out{};
  int32_t tokens[kChunk];
  double listed = 0;
  for (int32_t t = 0; t < count; t += kChunk) {
    const int32_t end = std::min(count - t, kChunk) + t;
    const int32_t n = TOKOPS_PASS(list_tokens, row, t, end, sums.top, bound, tokens, listed);
    out.tokens.insert(out.tokens.end(), tokens, tokens + n);
  }
  if (int64_t(out.tokens.size()) == sums.legal_count) return out;
  out.rest = sums.legal - listed;
  if (out.rest < 1e-6 * sums.legal)  // the difference has lost its digits
    out.rest = TOKOPS_PASS(rest_below, row, sums.top, bound);
  return out;
}

void row_mask(float* logits, int32_t count, const int32_t* mask, size_t words) {
  if (mask != nullptr) TOKOPS_PASS(forbid, logits, Row{logits, count, mask, words});
}

}  // namespace tokops::grammar
