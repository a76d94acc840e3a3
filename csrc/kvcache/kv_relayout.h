// Packed rows in another physical order.
#pragma once
#include "kvcache/codec.h"

namespace tokops {

constexpr int kTileTokens = 16;

// Pages [tiles of 16 tokens] of dense rows, to or from tile order:
//   full: [D][16 tokens];  codes: columns of 4 bytes [32-bit columns of D][16 tokens][4 bytes],
//   where bits i * b.. of byte r of column j hold dimension 32 / b * j + 4 i + r.
struct KvRelayout {
  const void* from;
  void* to;
  int64_t tiles;
  int32_t D;
  int32_t bits;  // of a code; 0: full elements
  int32_t size;  // of a full element, in bytes
  bool to_tile;
};
// kv_relayout.isa.cpp on the CPU, .cu on CUDA.
void kv_relayout(const KvRelayout& p, const Queue& q);

}  // namespace tokops
