// Rows of packed pools on CUDA: a warp holds one, element lane + 32 i in x[i] of its lanes.
#pragma once
#include "common/cuda.cuh"
#include "kvcache/codec.h"

namespace tokops {
namespace {

constexpr int kSlices = kMaxHeadDim / 32;
constexpr int kRowThreads = 128;  // four rows to a block
constexpr int kRowsPerBlock = kRowThreads / 32;

inline dim3 row_blocks(int64_t rows) {
  return dim3(unsigned((rows + kRowsPerBlock - 1) / kRowsPerBlock));
}
__device__ __forceinline__ int64_t row_of_warp() {
  return int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
}

// Writes 32 codes, one of each lane, to their place in a row of `left` more elements. The warp
// takes part.
__device__ __forceinline__ void store_slice(int bits, char* row, int slice, int left,
                                            unsigned code) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(row) + slice * 4 * bits;
  const int lane = threadIdx.x % 32;
  int width = 32;
  for (int have = bits; have < 8; have *= 2) {  // lanes below `width` gather from those above
    const int from = have == bits && bits == 2 ? 8 : 16;
    code |= __shfl_xor_sync(kFullWarp, code, from) << have;
    width = bits == 2 ? 8 : 16;
  }
  if (lane < width && lane < left) bytes[lane] = uint8_t(code);
}

// Writes elements x [D] to a slot of a pool of token or head geometry or a full one, and the scales
// that belong to that slot alone.
__device__ __forceinline__ void quantise_row(const PackedPool& p, int64_t page, int64_t h,
                                             int64_t slot, float (&x)[kSlices]) {
  const int lane = threadIdx.x % 32;
  char* row = row_of(p, page, h, slot);
  if (p.kind == CodecKind::full) {
#pragma unroll
    for (int i = 0; i < kSlices; ++i)
      if (lane + 32 * i < p.D) store_element(p.dtype, row, lane + 32 * i, x[i]);
    return;
  }
  Grid grid[kSlices];
  const bool symmetric = is_symmetric(p);
#pragma unroll
  for (int i = 0; i < kSlices; ++i) x[i] = clamp_input(x[i]);
  for (int column = 0; column * p.group < p.D; ++column) {
    const int first = column * p.group, last = first + p.group;
    Grid g;
    if (p.geometry == Geometry::token) {
      float lo = INFINITY, hi = -INFINITY;
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const int d = lane + 32 * i;
        if (d >= first && d < last) {
          lo = x[i] < lo ? x[i] : lo;
          hi = x[i] > hi ? x[i] : hi;
        }
      }
      g = grid_of(p.kind, symmetric, p.scale_dtype, -warp_max(-lo), warp_max(hi));
      if (lane == 0) store_grid(p, page, h, scale_row(p, slot), column, g);
    } else {
      g = grid_at(p, page, h, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kSlices; ++i)
      if (lane + 32 * i >= first && lane + 32 * i < last) grid[i] = g;
  }
#pragma unroll
  for (int i = 0; i < kSlices; ++i)
    if (32 * i < p.D) {
      const int left = p.D - 32 * i;
      const unsigned code = lane < left ? code_for(p.kind, symmetric, x[i], grid[i]) : 0;
      store_slice(bits_of(p.kind), row, i, left, code);
    }
}

// Element d of a slot.
__device__ __forceinline__ float element_of(const PackedPool& p, int64_t page, int64_t h,
                                            int64_t slot, int d) {
  const char* row = row_of(p, page, h, slot);
  if (p.kind == CodecKind::full) return element_at(p.dtype, row, d);
  const uint8_t code = code_of(bits_of(p.kind), reinterpret_cast<const uint8_t*>(row), d);
  return code_value(p.kind, code, grid_at(p, page, h, scale_row(p, slot), scale_column(p, d)));
}

}  // namespace
}  // namespace tokops
