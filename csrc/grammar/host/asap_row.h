// Passes over one row of logits under a packed mask: its sums, its likely tokens, and masking in
// place.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tokops::grammar {

struct RowSums {
  float top;            // the largest logit; -inf: the row is empty
  double whole, legal;  // sums of exp(logit - top): of all tokens, and of the legal ones
  int64_t legal_count;  // legal tokens with a logit above -inf
};

// Sums of a row of `count` logits. Bit t % 32 of word t / 32 of the mask is set where a token is
// legal; tokens beyond its words are not; nullptr: all are.
RowSums row_sums(const float* logits, int32_t count, const int32_t* mask, size_t words);

struct RowTokens {
  std::vector<int32_t> tokens;
  double rest;  // sum of exp(logit - top) over the legal tokens that are not listed
};

// The legal tokens whose weight is at least `least`, ascending.
RowTokens row_tokens(const float* logits, int32_t count, const int32_t* mask, size_t words,
                     const RowSums& sums, double least);

// Puts -inf where a token is not legal.
void row_mask(float* logits, int32_t count, const int32_t* mask, size_t words);

}  // namespace tokops::grammar
