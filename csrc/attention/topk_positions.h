// Positions of the k largest scores of every row, ascending: larger score first, then lower
// position.
#pragma once
#include <cstddef>

#include "common/backend.h"
#include "common/keys.h"

namespace tokops {

struct TopkPositions {
  const float* scores;          // [rows, length] dense
  const int32_t *lens, *k;      // [rows] or null
  const float* threshold;       // [rows] or null; a score must be larger
  int32_t *positions, *counts;  // [rows, k_max] dense, [rows]
  int64_t rows, length, k_max;  // length and k_max below 2^31
  void* workspace;              // CPU only: room for `slots` rows at a time
  int32_t slots;
};

// Bytes the CPU kernel needs at p.workspace (16-byte aligned), given p.slots and p.length.
size_t topk_positions_workspace(const TopkPositions& p);
void topk_positions(const TopkPositions& p,
                    const Queue& q);  // topk_positions.isa.cpp on the CPU, .cu on CUDA

namespace {  // headers of .isa.cpp files must not emit shared symbols

// Smallest key a row selects. A NaN threshold is INT32_MAX, which no score has.
constexpr int32_t floor_key(int32_t threshold_bits) {
  const int32_t key = score_key(threshold_bits);
  return key == kKeyOfNan ? INT32_MAX : (key < kKeyOfMinusInf ? kKeyOfMinusInf : key) + 1;
}

}  // namespace
}  // namespace tokops
