// Eight elements of a packed row at a time, from its bytes in shared memory to a tile.
#pragma once
#include "attention/parts.h"
#include "common/cuda.cuh"
#include "common/ptx.cuh"
#include "kvcache/codec.h"

namespace tokops::paged {
namespace {

// What reads elements [column, column + 8) of rows: made once, for a column that is a multiple
// of 8. Integers of 8, 4 or 2 bits, scale and zero not applied.
struct IntOctet {
  int byte, shift;
  uint32_t mask;  // of every byte
  __device__ IntOctet(Codec codec, int column) {
    const auto set = [&](int bits) {
      byte = code_byte(bits, column);
      shift = code_shift(bits, column);
      mask = 0x01010101u * ((1u << bits) - 1);
    };
    if (codec == Codec::int8) set(8);
    if (codec == Codec::int4) set(4);
    if (codec == Codec::int2) set(2);
  }
  __device__ void read(const unsigned char* row, float (&x)[8]) const {
    const auto words = *reinterpret_cast<const Pack<uint32_t, 2>*>(row + byte);
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e] = float((words.at[e / 4] >> shift & mask) >> e % 4 * 8 & 0xff);
  }
};

// fp8: read as float16, for e4m3 2^-8 of the value (grid_of makes up for it).
template <bool E4m3>
struct Fp8Octet {
  int byte;
  __device__ Fp8Octet(Codec, int column) : byte(column) {}
  __device__ void read(const unsigned char* row, float (&x)[8]) const {
    const auto words = *reinterpret_cast<const Pack<uint32_t, 2>*>(row + byte);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t code = words.at[e / 4] >> e % 4 * 8;
      const uint32_t bits = E4m3 ? (code & 0x80) << 8 | (code & 0x7f) << 7 : code << 8;
      x[e] = __half2float(__ushort_as_half(uint16_t(bits)));
    }
  }
};

template <class T>
struct FullOctet {
  int byte;
  __device__ FullOctet(Codec, int column) : byte(column * int(sizeof(T))) {}
  __device__ void read(const unsigned char* row, float (&x)[8]) const {
    constexpr int kEach = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < 8; i += kEach) {
      const auto part = *reinterpret_cast<const Pack<T, kEach>*>(row + byte + i * int(sizeof(T)));
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[i + e] = to_float(part.at[e]);
    }
  }
};

// Calls f(octet) for the elements from `column` on; `dtype` is that of full-precision rows. 16-bit
// rows and float32 rows never meet in a kernel: T is the tile's type.
template <class T, class F>
__device__ __forceinline__ void with_octet(Codec codec, DType dtype, int column, F&& f) {
  if (codec == Codec::full) {
    if constexpr (sizeof(T) == 4)
      f(FullOctet<float>(codec, column));
    else if (dtype == DType::f16)
      f(FullOctet<__half>(codec, column));
    else
      f(FullOctet<__nv_bfloat16>(codec, column));
  } else if (codec == Codec::e4m3) {
    f(Fp8Octet<true>(codec, column));
  } else if (codec == Codec::e5m2) {
    f(Fp8Octet<false>(codec, column));
  } else {
    f(IntOctet(codec, column));
  }
}

// A stored scale or zero, and its bits.
__device__ __forceinline__ uint32_t stored_bits(const Side& x, const void* data, int64_t at) {
  return x.wide_scale ? static_cast<const uint32_t*>(data)[at]
                      : static_cast<const uint16_t*>(data)[at];
}
__device__ __forceinline__ float number_of(const Side& x, uint32_t bits) {
  return x.wide_scale ? __uint_as_float(bits) : __half2float(__ushort_as_half(uint16_t(bits)));
}

// Scale and zero of numbers as octets give them.
__device__ __forceinline__ Grid grid_of(const Side& x, uint32_t scale, uint32_t zero) {
  const float s = number_of(x, scale);
  const float z = x.zero ? number_of(x, zero) : x.codec == Codec::int8 ? -128.f * s : 0.f;
  return {x.codec == Codec::e4m3 ? 256.f * s : s, z};
}

// Those of eight dimensions, the first at `at`.
__device__ __forceinline__ void load_grids(const Side& x, int64_t at, Grid (&g)[8]) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int64_t there = at + e * x.s_g;
    g[e] = grid_of(x, stored_bits(x, x.scale, there), x.zero ? stored_bits(x, x.zero, there) : 0);
  }
}

// An element as a tile keeps it. float16 ends at 65504, as do the elements that codecs take; what
// lies beyond, decoded or of a full-precision part, is cut.
template <class T>
__device__ __forceinline__ float kept(float x) {
  if constexpr (sizeof(T) == 4) return x;
  return __half2float(__ushort_as_half(uint16_t(ptx::pack_halves(x, 0.f))));
}

// Writes eight elements from `column` on to a row of a tile.
template <class Shape>
__device__ __forceinline__ void store_octet(typename Shape::T* tile, int row, int column,
                                            const float (&x)[8]) {
  Pack<uint32_t, 4> words;
#pragma unroll
  for (int i = 0; i < 8; i += Shape::kPiece) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      words.at[e] = Shape::kPiece == 8 ? ptx::pack_halves(x[2 * e], x[2 * e + 1])
                                       : __float_as_uint(x[(i + e) % 8]);
    *reinterpret_cast<Pack<uint32_t, 4>*>(tile + Shape::at(row, (column + i) / Shape::kPiece)) =
        words;
  }
}

}  // namespace
}  // namespace tokops::paged
