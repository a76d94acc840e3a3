// Next bytes of a node of the token trie: a run of the vocabulary, sorted by bytes.
#pragma once
#include "common/backend.h"
#include "common/row_law.h"

namespace tokops {

constexpr int kByteBins = 257;  // the last: tokens that end at the node

struct ByteMarginal {
  const void* logp;  // [B, V], the last axis contiguous
  int64_t stride;    // of rows, in elements
  DType dtype;
  int64_t B, V;
  const int32_t* order;    // [S] token ids sorted by their bytes
  const int32_t* offsets;  // [S + 1] where the bytes of each begin
  const uint8_t* bytes;
  int64_t S, size;                    // sorted tokens, bytes
  const int32_t *low, *high, *depth;  // [B] the node's run of sorted tokens and its depth
  float* out;                         // [B, kByteBins]
};

// byte_marginal.isa.cpp on the CPU, .cu on CUDA. What lies outside the tables is skipped.
void byte_marginal(const ByteMarginal& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

struct Run {
  int64_t low, high;
};
TOKOPS_HD Run run_of_row(const ByteMarginal& p, int64_t row) {
  const int64_t low = p.low[row], high = p.high[row];
  return {low < 0 ? 0 : low, high > p.S ? p.S : high};
}

// Where the byte at `depth` of sorted token i sorts: 0 for a token that ends there, else 1 + byte.
TOKOPS_HD int place_of(const ByteMarginal& p, int64_t i, int32_t depth) {
  const int64_t at = int64_t(p.offsets[i]) + depth;
  return at >= p.offsets[i + 1] || at < 0 || at >= p.size ? 0 : 1 + p.bytes[at];
}
TOKOPS_HD int bin_of(int place) { return place == 0 ? kByteBins - 1 : place - 1; }

// ln of a bin's mass from the largest of its log-probabilities and the sum relative to it.
TOKOPS_HD float bin_mass(float top, float sum) {
  return top > -INFINITY ? top + exact::log_positive(sum) : -INFINITY;
}

}  // namespace
}  // namespace tokops
