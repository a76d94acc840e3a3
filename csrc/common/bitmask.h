// Rows of bits over a vocabulary: bit t % 32 of word t / 32 is 1 where token t is allowed.
#pragma once
#include "common/backend.h"

namespace tokops {

struct Bitmask {
  const int32_t* words;  // [rows, width], the last axis contiguous; null: all tokens are allowed
  int64_t stride;        // of rows, in words; 0 where one row serves all
  int64_t width;         // tokens from 32 * width on are not allowed
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

constexpr uint32_t kAllAllowed = 0xffffffffu;

TOKOPS_HD const int32_t* bits_of_row(const Bitmask& m, int64_t row) {
  return m.words ? m.words + row * m.stride : nullptr;
}
TOKOPS_HD uint32_t word_of(const Bitmask& m, const int32_t* bits, int64_t word) {
  return word < m.width ? uint32_t(bits[word]) : 0;
}
TOKOPS_HD bool is_allowed(const Bitmask& m, const int32_t* bits, int64_t token) {
  return word_of(m, bits, token / 32) >> (token % 32) & 1;
}

}  // namespace
}  // namespace tokops
