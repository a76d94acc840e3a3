#include "common/cuda.cuh"
#include "kvcache/kv_relayout.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;

// One thread per element that is written.
template <class T>
__global__ void relay_elements_kernel(KvRelayout p, int64_t total) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t tile = i / (kTileTokens * p.D) * (kTileTokens * p.D);
  const int u = int(i - tile);
  const int from =
      p.to_tile ? u % kTileTokens * p.D + u / kTileTokens : u % p.D * kTileTokens + u / p.D;
  static_cast<T*>(p.to)[i] = static_cast<const T*>(p.from)[tile + from];
}

// Byte and shift of dimension d of a token in tile order.
__device__ __forceinline__ uint8_t tile_code(int bits, const uint8_t* tile, int token, int d) {
  const int dims = 32 / bits;
  const int byte = (d / dims * kTileTokens + token) * 4 + d % 4;
  return uint8_t(tile[byte] >> d % dims / 4 * bits & ((1 << bits) - 1));
}

// One thread per byte that is written.
__global__ void relay_codes_kernel(KvRelayout p, int64_t total) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int bits = p.bits, parts = 8 / bits, row = p.D * bits / 8;
  const int64_t tile = i / (kTileTokens * row) * (kTileTokens * row);
  const uint8_t* from = static_cast<const uint8_t*>(p.from) + tile;
  const int u = int(i - tile);
  unsigned byte = 0;
  for (int part = 0; part < parts; ++part) {
    unsigned code;
    if (p.to_tile) {
      const int column = u / (4 * kTileTokens), token = u / 4 % kTileTokens;
      code = code_of(bits, from + token * row, 4 * (parts * column + part) + u % 4);
    } else {
      const int token = u / row, at = u % row, width = kPackBlock / parts;  // bytes of a block
      const int d = bits == 8 ? at : at / width * kPackBlock + part * width + at % width;
      code = tile_code(bits, from, token, d);
    }
    byte |= code << part * bits;
  }
  static_cast<uint8_t*>(p.to)[i] = uint8_t(byte);
}

}  // namespace

void kv_relayout(const KvRelayout& p, const Queue& q) {
  const int64_t per_tile = kTileTokens * (p.bits ? p.D * p.bits / 8 : p.D);
  const int64_t total = p.tiles * per_tile;
  const dim3 grid(unsigned((total + kThreads - 1) / kThreads)), block(kThreads);
  if (p.bits)
    launch(relay_codes_kernel, grid, block, 0, q, p, total);
  else if (p.size == 4)
    launch(relay_elements_kernel<uint32_t>, grid, block, 0, q, p, total);
  else
    launch(relay_elements_kernel<uint16_t>, grid, block, 0, q, p, total);
}

}  // namespace tokops
