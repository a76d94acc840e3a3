// Four dimensions of a packed row at a time, from a word of its bytes in shared memory to float16
// pairs.
#pragma once
#include "attention/packed_decode.codes.cuh"

namespace tokops::paged {
namespace {

// A row's 16-byte chunk c lies at chunk c ^ turn_of(row): then eight rows of one chunk, as keys are
// read, and four rows of the two chunks that values are read from, lie in different banks.
__device__ __forceinline__ unsigned turn_of(bool bytes, unsigned chunks, unsigned row) {
  const unsigned a = row & 1, b = row >> 1 & 1, c = row >> 2 & 1;
  if (chunks == 8) return a | b << 2 | c << 1;
  if (chunks == 4) return bytes ? b | c << 1 : b << 1 | c;
  return chunks == 2 ? c : 0;
}

// Codes of one kind. A block of 32 dimensions is eight quads: quad i < 4 is dimensions 4 i to
// 4 i + 3, and quad 4 + i lies 16 further. Integers come as kOffset + code, the float16 that needs
// no arithmetic; sums of products with them are right by as much. e4m3 comes as 2^-8 of its value,
// see grid_of.
inline constexpr float kOffset = 1024.f;
inline constexpr uint32_t kMinusOffset = 0xe400e400u;  // twice, in float16
__device__ __forceinline__ bool has_offset(Codec c) { return c != Codec::e4m3 && c != Codec::e5m2; }
template <Codec C>
struct Words {
  // Scales of values are kept times 2^kGain, and sums are 2^kGain too large until they are stored:
  // the scale of a value of size 1, and a weight times it, are then far from what float16 loses.
  static constexpr int kGain = C == Codec::int8   ? 7
                               : C == Codec::int4 ? 3
                               : C == Codec::int2 ? 1
                               : C == Codec::e5m2 ? 13
                                                  : 0;
  static constexpr bool kFp8 = C == Codec::e4m3 || C == Codec::e5m2;
  static constexpr int kBits = C == Codec::int4 ? 4 : C == Codec::int2 ? 2 : 8;

  __device__ static constexpr unsigned chunks(unsigned D) { return D * kBits / 128; }
  // Where a row, whose chunks lie as `turn` says, has quads i and 4 + i of a block.
  __device__ static ptx::Shared start(ptx::Shared row, unsigned turn, unsigned block, unsigned i) {
    if constexpr (kBits == 8) return row + (2 * block ^ turn) * 16 + i * 4;
    if constexpr (kBits == 4) return row + (block ^ turn) * 16 + i * 4;
    return row + (block / 2 ^ turn) * 16 + block % 2 * 8 + i % 2 * 4;
  }
  // The words that hold them, b blocks on: rows are aligned to their size.
  __device__ static void load(ptx::Shared start, unsigned b, uint32_t (&raw)[2]) {
    if constexpr (kBits == 8) {
      raw[0] = ptx::load_word(ptx::flip(start, b * 32));
      raw[1] = ptx::load_word(ptx::flip(start, b * 32 + 16));
    } else {
      raw[0] = ptx::load_word(ptx::flip(start, kBits == 4 ? b * 16 : b / 2 * 16 + b % 2 * 8));
    }
  }
  // A code per byte: of quad i + 4 h out of such words.
  __device__ static uint32_t bytes(const uint32_t (&raw)[2], unsigned h, unsigned i) {
    if constexpr (kBits == 8) return raw[h];
    if constexpr (kBits == 4) return raw[0] >> 4 * h & 0x0f0f0f0f;
    return raw[0] >> (4 * h + i / 2 * 2) & 0x03030303;
  }
  // The codes in two of a word's bytes.
  template <int kLow, int kHigh>
  __device__ static uint32_t pair(uint32_t word) {
    if constexpr (kFp8) {
      const uint32_t x = __byte_perm(word, 0, 0x0404 | kLow << 4 | kHigh << 12);
      return C == Codec::e5m2 ? x : (x & 0x80008000u) | (x & 0x7f007f00u) >> 1;
    } else {
      return __byte_perm(word, 0x64646464u, 0x4040 | kLow | kHigh << 8);
    }
  }
};

__device__ __forceinline__ float gain_of(Codec c) {
  return c == Codec::int8   ? 128.f
         : c == Codec::int4 ? 8.f
         : c == Codec::int2 ? 2.f
         : c == Codec::e5m2 ? 8192.f
                            : 1.f;
}
// 2^n, twice, in float16.
constexpr uint32_t two_powers(int n) { return 0x00010001u * uint32_t(15 + n) << 10; }

// A row of codes one by one, without an offset.
struct CodeRow {
  Codec codec;
  const unsigned char* data;
  int chunks, index;
  __device__ float number(int d) const {
    const int bits = codec == Codec::int4 ? 4 : codec == Codec::int2 ? 2 : 8;
    const int byte = code_byte(bits, d);
    const int chunk = byte / 16 ^ turn_of(bits == 8, chunks, index);
    const int code = data[chunk * 16 + byte % 16] >> code_shift(bits, d) & ((1 << bits) - 1);
    if (codec == Codec::e5m2) return __half2float(__ushort_as_half(uint16_t(code << 8)));
    if (codec == Codec::e4m3)
      return __half2float(__ushort_as_half(uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7)));
    return float(code);
  }
};

// Calls f(Words) for a codec that is not full.
template <class F>
__device__ __forceinline__ void with_words(Codec codec, F&& f) {
  if (codec == Codec::int8) f(Words<Codec::int8>());
  if (codec == Codec::int4) f(Words<Codec::int4>());
  if (codec == Codec::int2) f(Words<Codec::int2>());
  if (codec == Codec::e4m3) f(Words<Codec::e4m3>());
  if (codec == Codec::e5m2) f(Words<Codec::e5m2>());
}

}  // namespace
}  // namespace tokops::paged
