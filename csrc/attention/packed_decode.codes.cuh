// Units of packed rows as numbers, scales not applied. A unit's bytes lie in shared memory, aligned
// to its size.
#pragma once
#include "attention/parts.h"
#include "common/cuda.cuh"
#include "kvcache/codec.h"

namespace tokops::paged {
namespace {

// Four or two words that hold Bytes bytes of a row.
template <int Bytes>
struct Words {
  static constexpr int kBytes = Bytes;
  uint32_t at[Bytes / 4];
  __device__ explicit Words(const unsigned char* from) {
    const auto x = *reinterpret_cast<const Pack<uint32_t, Bytes / 4>*>(from);
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) at[i] = x.at[i];
  }
};

// Elements of a full-precision row.
template <class T>
struct FullUnit : Words<16> {
  static constexpr int kElements = 16 / int(sizeof(T));
  using Words<16>::Words;
  __device__ float operator()(int e) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(at[e]);
    const uint16_t bits = uint16_t(at[e / 2] >> 16 * (e % 2));
    T x;
    memcpy(&x, &bits, sizeof bits);
    return to_float(x);
  }
};

// Unsigned integers of 8, 4 or 2 bits.
template <int Bits>
struct IntUnit : Words<Bits == 2 ? 8 : 16> {
  static constexpr int kElements = Bits == 8 ? 16 : kPackBlock;
  using Words<Bits == 2 ? 8 : 16>::Words;
  __device__ float operator()(int e) const {
    const int byte = code_byte(Bits, e), shift = byte % 4 * 8 + code_shift(Bits, e);
    return float(this->at[byte / 4] >> shift & ((1u << Bits) - 1));
  }
};

// fp8: the bits of a float16, for e4m3 one 2^-8 of the value.
template <bool E4m3>
struct Fp8Unit : Words<16> {
  static constexpr int kElements = 16;
  static constexpr float kGain = E4m3 ? 256.f : 1.f;
  using Words<16>::Words;
  __device__ float operator()(int e) const {
    const uint32_t byte = at[e / 4] >> e % 4 * 8;
    const uint32_t bits = E4m3 ? (byte & 0x80) << 8 | (byte & 0x7f) << 7 : byte << 8;
    return __half2float(__ushort_as_half(uint16_t(bits)));
  }
};

// Calls f(Tag<unit>{}) for the codec's unit; `dtype` is that of full-precision rows.
template <class F>
__device__ __forceinline__ void with_unit(Codec codec, DType dtype, F&& f) {
  switch (codec) {
    case Codec::full:
      if (dtype == DType::f16)
        f(Tag<FullUnit<__half>>{});
      else if (dtype == DType::bf16)
        f(Tag<FullUnit<__nv_bfloat16>>{});
      else
        f(Tag<FullUnit<float>>{});
      return;
    case Codec::int8:
      return f(Tag<IntUnit<8>>{});
    case Codec::int4:
      return f(Tag<IntUnit<4>>{});
    case Codec::int2:
      return f(Tag<IntUnit<2>>{});
    case Codec::e4m3:
      return f(Tag<Fp8Unit<true>>{});
    case Codec::e5m2:
      return f(Tag<Fp8Unit<false>>{});
  }
}

// An element of a tile. float16 holds what codecs hold, 65504 at most; beyond it a decoded number
// or an element of a full-precision part is cut.
template <class T>
__device__ __forceinline__ T tile_element(float x) {
  if constexpr (std::is_same_v<T, __half>)
    x = x > kLargestInput ? kLargestInput : x < -kLargestInput ? -kLargestInput : x;
  return from_float<T>(x);
}

// A stored scale or zero, and its bits.
__device__ __forceinline__ uint32_t stored_bits(const Side& x, const void* data, int64_t at) {
  return x.wide_scale ? static_cast<const uint32_t*>(data)[at]
                      : static_cast<const uint16_t*>(data)[at];
}
__device__ __forceinline__ float number_of(const Side& x, uint32_t bits) {
  return x.wide_scale ? __uint_as_float(bits) : __half2float(__ushort_as_half(uint16_t(bits)));
}

// Scale and zero of numbers as units give them.
__device__ __forceinline__ Grid grid_of(const Side& x, uint32_t scale, uint32_t zero) {
  const float s = number_of(x, scale);
  const float z = x.zero ? number_of(x, zero) : x.codec == Codec::int8 ? -128.f * s : 0.f;
  return {x.codec == Codec::e4m3 ? Fp8Unit<true>::kGain * s : s, z};
}

// Per channel: the grids of the dimensions [at, at + 4), or of those `x.s_g` apart.
__device__ __forceinline__ void load_grids(const Side& x, bool quads, int64_t at, Grid (&g)[4]) {
  Pack<uint32_t, 4> s{}, z{};
  if (quads && x.wide_scale) {
    s = *reinterpret_cast<const Pack<uint32_t, 4>*>(static_cast<const uint32_t*>(x.scale) + at);
    if (x.zero)
      z = *reinterpret_cast<const Pack<uint32_t, 4>*>(static_cast<const uint32_t*>(x.zero) + at);
  } else if (quads) {
    using Halves = Pack<uint16_t, 4>;
    const auto a = *reinterpret_cast<const Halves*>(static_cast<const uint16_t*>(x.scale) + at);
    const auto b = x.zero
                       ? *reinterpret_cast<const Halves*>(static_cast<const uint16_t*>(x.zero) + at)
                       : Halves{};
#pragma unroll
    for (int i = 0; i < 4; ++i) s.at[i] = a.at[i], z.at[i] = b.at[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s.at[i] = stored_bits(x, x.scale, at + i * x.s_g);
      if (x.zero) z.at[i] = stored_bits(x, x.zero, at + i * x.s_g);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) g[i] = grid_of(x, s.at[i], z.at[i]);
}

}  // namespace
}  // namespace tokops::paged
