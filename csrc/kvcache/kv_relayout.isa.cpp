#include "kvcache/kv_relayout.h"

#include "common/isa.h"
#include "kvcache/rows.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 16 << 10;

template <class T>
void relay_elements(const KvRelayout& p, const T* from, T* to) {
  for (int t = 0; t < kTileTokens; ++t)
    for (int d = 0; d < p.D; ++d) {
      const int row = t * p.D + d, tile = d * kTileTokens + t;
      to[p.to_tile ? tile : row] = from[p.to_tile ? row : tile];
    }
}

// Both directions by way of codes, one a byte.
void relay_codes(const KvRelayout& p, const uint8_t* from, uint8_t* to) {
  const int bits = p.bits, parts = 8 / bits, columns = p.D * bits / 32, row = p.D * bits / 8;
  uint8_t codes[kMaxHeadDim];
  for (int t = 0; t < kTileTokens; ++t) {
    if (p.to_tile) unpack_row(bits, from + t * row, p.D, codes);
    for (int j = 0; j < columns; ++j)
      for (int r = 0; r < 4; ++r) {
        const int at = (j * kTileTokens + t) * 4 + r;
        unsigned byte = p.to_tile ? 0 : from[at];
        for (int i = 0; i < parts; ++i) {
          uint8_t& code = codes[4 * (parts * j + i) + r];
          if (p.to_tile)
            byte |= unsigned(code) << i * bits;
          else
            code = uint8_t(byte >> i * bits & ((1 << bits) - 1));
        }
        if (p.to_tile) to[at] = uint8_t(byte);
      }
    if (!p.to_tile) pack_row(bits, codes, p.D, to + t * row);
  }
}

void kv_relayout_copy(const KvRelayout& p, const Queue& q) {
  const int64_t bytes = kTileTokens * (p.bits ? p.D * p.bits / 8 : p.D * p.size);
  q.parallel(p.tiles, kElementsPerTask / (kTileTokens * p.D) + 1, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const uint8_t* from = static_cast<const uint8_t*>(p.from) + t * bytes;
      uint8_t* to = static_cast<uint8_t*>(p.to) + t * bytes;
      if (p.bits)
        relay_codes(p, from, to);
      else if (p.size == 4)
        relay_elements(p, reinterpret_cast<const uint32_t*>(from), reinterpret_cast<uint32_t*>(to));
      else
        relay_elements(p, reinterpret_cast<const uint16_t*>(from), reinterpret_cast<uint16_t*>(to));
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(kv_relayout, kv_relayout_copy, KvRelayout)
