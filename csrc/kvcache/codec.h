// The packed formats of cached tokens: where an element's bits lie in a page, what they mean, and
// how they are chosen. Torch-free; CPU and CUDA kernels share it.
#pragma once
#include <cstring>

#include "common/backend.h"

namespace tokops {

// int3 is int4 whose codes stay below 8; only what writes codes tells them apart.
enum class CodecKind : int32_t { full, int8, int4, int2, fp8_e4m3, fp8_e5m2, int3 };

// Which elements share a scale: `group` dimensions of one token, `group` tokens of one dimension,
// or all tokens of a head, whose scale is then given and never written.
enum class Geometry : int32_t { token, channel, head };

// Pages of K or of V. Codes are [N, H, P, bytes of a row] with rows contiguous; scales and zeros
// [N, H, P, D / group], [N, H, P / group, D] or [N, H, 1, 1] by geometry. A full pool has codes of
// `dtype` and no scales. H is 1 and codes_h = scale_h = zero_h = 0 where the table has a row per
// head.
struct PackedPool {
  char* codes;
  int64_t codes_n, codes_h, codes_p;           // in bytes
  void *scale, *zero;                          // zero is null: -128 * scale for int8, 0 for fp8
  int64_t scale_n, scale_h, scale_p, scale_d;  // in elements; _p steps over tokens or their groups
  int64_t zero_n, zero_h, zero_p, zero_d;
  int64_t pages;  // N
  int32_t P, D, group;
  CodecKind kind;
  Geometry geometry;
  DType scale_dtype;  // f16 or f32, of zero too
  DType dtype;        // of a full pool
};

// block_table [B, pages] (h = 0) or [B, Hkv, pages]: strides in entries.
struct PageTable {
  const int32_t* entries;
  int64_t b, h;
  int32_t pages;
};

namespace {  // headers of .isa.cpp files must not emit shared symbols

constexpr int kMaxHeadDim = 256;
constexpr int kPackBlock = 32;            // elements whose bytes are interleaved, int4 and int2
constexpr float kLargestInput = 65504.f;  // what a quantised input is clamped to: fp16's largest
constexpr float kRoundToInt = 8388608.f;  // 2^23: adding it rounds [0, 2^23) to nearest even
constexpr float kSmallestFp8Scale = 0x1p-100f;

// ---- Which format. ----

constexpr bool is_fp8(CodecKind k) { return k == CodecKind::fp8_e4m3 || k == CodecKind::fp8_e5m2; }
// Bits of one code in its container; 0 where elements are not coded.
constexpr int bits_of(CodecKind k) {
  return k == CodecKind::full                           ? 0
         : k == CodecKind::int4 || k == CodecKind::int3 ? 4
         : k == CodecKind::int2                         ? 2
                                                        : 8;
}
// The largest code of an integer format.
constexpr int top_code(CodecKind k) {
  return k == CodecKind::int8 ? 255 : k == CodecKind::int4 ? 15 : k == CodecKind::int3 ? 7 : 3;
}
constexpr float largest_fp8(CodecKind k) { return k == CodecKind::fp8_e4m3 ? 448.f : 57344.f; }
constexpr int size_of(DType d) { return d == DType::f32 ? 4 : 2; }

// ---- Numbers, bit by bit. ----

TOKOPS_HD float float_of_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
TOKOPS_HD uint32_t bits_of_float(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

TOKOPS_HD float half_value(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = uint32_t(h & 0x7fff) << 13;
  const float magnitude =
      (h & 0x7c00) == 0x7c00 ? float_of_bits(rest | 0x7f800000) : float_of_bits(rest) * 0x1p112f;
  return float_of_bits(bits_of_float(magnitude) | sign);
}
// The nearest fp16 of a number of at most kLargestInput.
TOKOPS_HD uint16_t half_nearest(float x) {
  const uint32_t u = bits_of_float(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  const uint32_t normal = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_of_float(float_of_bits(a) + 0.5f) - 0x3f000000;
  return uint16_t(sign | (a >= 0x38800000 ? normal : subnormal));
}
// The smallest fp16 that is not below x >= 0, and the largest that is not above x.
TOKOPS_HD uint16_t half_up(float x) {
  const uint16_t h = half_nearest(x);
  return half_value(h) < x ? uint16_t(h + 1) : h;
}
TOKOPS_HD uint16_t half_down(float x) {
  const uint16_t h = half_nearest(x);
  if (half_value(h) <= x) return h;
  return h & 0x8000 ? uint16_t(h + 1) : uint16_t(h - 1);  // a nearest above x < 0 is -0 or negative
}

TOKOPS_HD float fp8_value(CodecKind k, uint8_t c) {
  if (k == CodecKind::fp8_e5m2) return half_value(uint16_t(c << 8));
  if ((c & 0x7f) == 0x7f) return float_of_bits(0x7fc00000);
  return half_value(uint16_t((c & 0x80) << 8 | (c & 0x7f) << 7)) * 256.f;
}
// The nearest code, ties to even, of |y| <= largest_fp8(k).
TOKOPS_HD uint8_t fp8_code(CodecKind k, float y) {
  const bool e4m3 = k == CodecKind::fp8_e4m3;
  const uint32_t u = bits_of_float(y), sign = u >> 24 & 0x80, a = u & 0x7fffffff;
  const int shift = e4m3 ? 20 : 21;                   // float's mantissa bits beyond the code's
  const uint32_t below = (e4m3 ? 120u : 112u) << 23;  // difference of the exponent biases
  const uint32_t normal = (a - below + (1u << (shift - 1)) - 1 + (a >> shift & 1)) >> shift;
  const float magic = e4m3 ? 16384.f : 128.f;  // its unit is the smallest code's value
  const uint32_t subnormal = bits_of_float(float_of_bits(a) + magic) - bits_of_float(magic);
  // Masks and not a choice: a compiler that moves the sum into a branch cannot vectorise it.
  const uint32_t is_normal = 0u - uint32_t(a >= below + (1u << 23));
  return uint8_t(sign | (normal & is_normal) | (subnormal & ~is_normal));
}

// ---- Where a code lies in its row. ----

TOKOPS_HD int code_byte(int bits, int d) {
  if (bits == 8) return d;
  const int bytes = kPackBlock * bits / 8;
  return d / kPackBlock * bytes + d % bytes;
}
TOKOPS_HD int code_shift(int bits, int d) {
  return bits == 8 ? 0 : d % kPackBlock / (kPackBlock * bits / 8) * bits;
}
TOKOPS_HD uint8_t code_of(int bits, const uint8_t* row, int d) {
  return uint8_t(row[code_byte(bits, d)] >> code_shift(bits, d) & ((1 << bits) - 1));
}

// ---- What codes mean, and which code an element gets. ----

// x = code * scale + zero, code being the integer or the fp8 number.
struct Grid {
  float scale, zero;
};
TOKOPS_HD float code_value(CodecKind k, uint8_t code, const Grid& g) {
  return (is_fp8(k) ? fp8_value(k, code) : float(code)) * g.scale + g.zero;
}

TOKOPS_HD float clamp_input(float x) {
  const float y = x == x ? x : 0.f;
  const float z = y < kLargestInput ? y : kLargestInput;
  return z > -kLargestInput ? z : -kLargestInput;
}

// Stored scale or zero, as kept at the precision of the pool.
TOKOPS_HD float kept_up(DType d, float x) { return d == DType::f32 ? x : half_value(half_up(x)); }
TOKOPS_HD float kept_down(DType d, float x) {
  return d == DType::f32 ? x : half_value(half_down(x));
}

// The grid of a group with clamped elements lo..hi, rounded to what the pool stores: the scale up
// and the zero down.
TOKOPS_HD Grid grid_of(CodecKind k, bool symmetric, DType stored, float lo, float hi) {
  const float most = hi > -lo ? hi : -lo;
  if (is_fp8(k)) {
    const float s = most / largest_fp8(k);
    return {kept_up(stored, s > kSmallestFp8Scale ? s : kSmallestFp8Scale), 0.f};
  }
  const float range = symmetric ? most / 127.f : (hi - lo) / float(top_code(k));
  const float s = kept_up(stored, range);
  const Grid g{s > 0.f ? s : 1.f, symmetric ? 0.f : kept_down(stored, lo + 0.f)};  // -0 becomes 0
  return symmetric ? Grid{g.scale, -128.f * g.scale} : g;
}

// The code of a clamped element. A symmetric grid uses 1..255 of int8, so that -x and x are coded
// alike.
TOKOPS_HD uint8_t int_code(float x, const Grid& g, bool symmetric, int top) {
  const float low = symmetric ? -127.f : 0.f, high = symmetric ? 127.f : float(top);
  float t = (symmetric ? x : x - g.zero) / g.scale;
  t = t > low ? t : low;
  t = t < high ? t : high;
  return uint8_t(bits_of_float(t + (symmetric ? kRoundToInt + 128.f : kRoundToInt)));
}
TOKOPS_HD uint8_t fp8_code_of(CodecKind k, float x, const Grid& g) {
  const float most = largest_fp8(k);
  float y = x / g.scale;
  y = y > -most ? y : -most;
  return fp8_code(k, y < most ? y : most);
}
TOKOPS_HD uint8_t code_for(CodecKind k, bool symmetric, float x, const Grid& g) {
  return is_fp8(k) ? fp8_code_of(k, x, g) : int_code(x, g, symmetric, top_code(k));
}

// ---- Where things lie in a pool. ----

// The page that holds a slot, or -1.
TOKOPS_HD int64_t page_of(const PageTable& t, const PackedPool& p, int64_t b, int64_t h,
                          int64_t slot) {
  if (slot < 0 || slot >= int64_t(t.pages) * p.P) return -1;
  const int64_t page = t.entries[b * t.b + h * t.h + slot / p.P];
  return page >= 0 && page < p.pages ? page : -1;
}

TOKOPS_HD char* row_of(const PackedPool& p, int64_t page, int64_t h, int64_t slot) {
  return p.codes + page * p.codes_n + h * p.codes_h + slot % p.P * p.codes_p;
}
TOKOPS_HD int row_bytes(const PackedPool& p) {
  return p.kind == CodecKind::full ? p.D * size_of(p.dtype) : p.D * bits_of(p.kind) / 8;
}
TOKOPS_HD bool is_symmetric(const PackedPool& p) {
  return p.kind == CodecKind::int8 && p.zero == nullptr;
}

// A slot's place along the scale's third axis, and a dimension's along the fourth.
TOKOPS_HD int64_t scale_row(const PackedPool& p, int64_t slot) {
  return p.geometry == Geometry::token     ? slot % p.P
         : p.geometry == Geometry::channel ? slot % p.P / p.group
                                           : 0;
}
TOKOPS_HD int scale_column(const PackedPool& p, int d) {
  return p.geometry == Geometry::token ? d / p.group : p.geometry == Geometry::channel ? d : 0;
}

TOKOPS_HD float stored_value(DType d, const void* p, int64_t at) {
  return d == DType::f32 ? static_cast<const float*>(p)[at]
                         : half_value(static_cast<const uint16_t*>(p)[at]);
}
TOKOPS_HD void store_value(DType d, void* p, int64_t at, float x) {
  if (d == DType::f32)
    static_cast<float*>(p)[at] = x;
  else
    static_cast<uint16_t*>(p)[at] = half_nearest(x);
}

// The grid at (scale_row, scale_column).
TOKOPS_HD Grid grid_at(const PackedPool& p, int64_t page, int64_t h, int64_t row, int64_t column) {
  const float s =
      stored_value(p.scale_dtype, p.scale,
                   page * p.scale_n + h * p.scale_h + row * p.scale_p + column * p.scale_d);
  if (!p.zero) return {s, p.kind == CodecKind::int8 ? -128.f * s : 0.f};
  return {s, stored_value(p.scale_dtype, p.zero,
                          page * p.zero_n + h * p.zero_h + row * p.zero_p + column * p.zero_d)};
}
TOKOPS_HD void store_grid(const PackedPool& p, int64_t page, int64_t h, int64_t row, int64_t column,
                          const Grid& g) {
  store_value(p.scale_dtype, p.scale,
              page * p.scale_n + h * p.scale_h + row * p.scale_p + column * p.scale_d, g.scale);
  if (p.zero)
    store_value(p.scale_dtype, p.zero,
                page * p.zero_n + h * p.zero_h + row * p.zero_p + column * p.zero_d, g.zero);
}

}  // namespace
}  // namespace tokops
