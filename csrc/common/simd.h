// Vectors of floats for .isa.cpp files: one type, as wide as the instruction set compiled for. All
// names are in an anonymous namespace because each copy of a kernel must keep its own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokops {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t as_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  // Shift exponent and mantissa into place and rescale: exact, subnormals included.
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  const float magnitude = (x.bits & 0x7c00) == 0x7c00 ? as_float(rest | 0x7f800000)
                                                      : as_float(rest) * as_float(0x77800000);
  return as_float(as_bits(magnitude) | sign);
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {
  const uint32_t u = as_bits(x);
  out->bits = x != x ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void from_float(float x, f16* out) {
  const uint32_t u = as_bits(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  uint32_t h;
  if (a > 0x7f800000) {
    h = 0x7e00;
  } else if (a >= 0x47800000) {  // 2^16 and above, where rounding cannot come back below
    h = 0x7c00;
  } else if (a >= 0x38800000) {  // normal: round to nearest even; may carry into infinity
    h = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
  } else {  // subnormal: let the float adder round at 2^-24
    h = as_bits(as_float(a) + 0.5f) - 0x3f000000;
  }
  out->bits = uint16_t(sign | h);
}

#if defined(__AVX512F__)
struct Vec {
  static constexpr int width = 16, groups = 4;
  __m512 v;
};
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
}
inline Vec load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The even and the odd of 32 columns, and their order again.
inline void load_even_odd(const bf16* p, Vec* even, Vec* odd) {
  const __m512i x = _mm512_loadu_si512(p);
  even->v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  odd->v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000))));
}
inline void interleave(Vec* a, Vec* b) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 even = a->v, odd = b->v;
  a->v = _mm512_permutex2var_ps(even, low, odd);
  b->v = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where a is NaN, as the instruction has it.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
// x < floor ? 0 : y * 2^n for integral n in [-126, 127].
inline Vec scale_or_zero(Vec y, Vec n, Vec x, Vec floor) {
  return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x.v, floor.v, _CMP_NLT_UQ), y.v, n.v)};
}
// a < limit ? b : c, lane by lane.
inline Vec select_less(Vec a, Vec limit, Vec b, Vec c) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, limit.v, _CMP_LT_OQ), c.v, b.v)};
}
// NaN -> -inf, +inf -> the largest float.
inline Vec sane(Vec a) {
  const __m512 low = _mm512_set1_ps(-INFINITY);
  const __m512 x = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v, low);
  return {_mm512_min_ps(x, _mm512_set1_ps(3.402823466e38f))};
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
// Lane i of the result is lane i ^ Step.
template <int Step>
inline Vec swap_lanes(Vec a) {
  if constexpr (Step == 1) {
    return {_mm512_permute_ps(a.v, 0xb1)};
  } else if constexpr (Step == 2) {
    return {_mm512_permute_ps(a.v, 0x4e)};
  } else {
    return {_mm512_shuffle_f32x4(a.v, a.v, Step == 4 ? 0xb1 : 0x4e)};
  }
}
// The floats of one group of lanes, repeated over all groups.
inline Vec repeat(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
// For each group l of lanes: the sums of that group in a, b, c and d, stored at out + l * stride.
[[gnu::always_inline]] inline void store_group_sums(float* out, int stride, Vec a, Vec b, Vec c,
                                                    Vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 x = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(out, _mm512_castps512_ps128(x));
  _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(x, 1));
  _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(x, 2));
  _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(x, 3));
}
#elif defined(__AVX2__)
struct Vec {
  static constexpr int width = 8, groups = 1;
  __m256 v;
};
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec splat(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
}
inline Vec load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// The even and the odd of 16 columns, and their order again.
inline void load_even_odd(const bf16* p, Vec* even, Vec* odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even->v = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  odd->v = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000))));
}
inline void interleave(Vec* a, Vec* b) {
  const __m256 low = _mm256_unpacklo_ps(a->v, b->v), high = _mm256_unpackhi_ps(a->v, b->v);
  a->v = _mm256_permute2f128_ps(low, high, 0x20);
  b->v = _mm256_permute2f128_ps(low, high, 0x31);
}
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec exp2i(Vec n) {
  return {_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23))};
}
inline Vec select_less(Vec a, Vec limit, Vec b, Vec c) {
  return {_mm256_blendv_ps(c.v, b.v, _mm256_cmp_ps(a.v, limit.v, _CMP_LT_OQ))};
}
inline Vec sane(Vec a) {
  const __m256 x =
      _mm256_blendv_ps(a.v, _mm256_set1_ps(-INFINITY), _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  return {_mm256_min_ps(x, _mm256_set1_ps(3.402823466e38f))};
}
inline float sum4(__m128 x) {
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float sum(Vec a) {
  return sum4(_mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1)));
}
inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
template <int Step>
inline Vec swap_lanes(Vec a) {
  if constexpr (Step == 4) {
    return {_mm256_permute2f128_ps(a.v, a.v, 1)};
  } else {
    return {_mm256_permute_ps(a.v, Step == 1 ? 0xb1 : 0x4e)};
  }
}
inline Vec repeat(const float* p) { return load(p); }
[[gnu::always_inline]] inline void store_group_sums(float* out, int, Vec a, Vec b, Vec c, Vec d) {
  const auto pairs = [](__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
  };
  const __m256 x = pairs(pairs(a.v, b.v), pairs(c.v, d.v));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
#else
// Four lanes of the compiler's own vectors: SSE2 on x86, NEON on Arm.
struct Vec {
  static constexpr int width = 4, groups = 1;
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  V v;
};
inline Vec zero() { return {Vec::V{}}; }
inline Vec splat(float x) { return {Vec::V{x, x, x, x}}; }
inline Vec load(const float* p) {
  Vec a;
  std::memcpy(&a.v, p, 16);
  return a;
}
template <class T>
inline Vec load(const T* p) {
  return {Vec::V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
inline void store(float* p, Vec a) { std::memcpy(p, &a.v, 16); }
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec round(Vec a) {  // |a| < 2^22: adding 1.5 * 2^23 leaves the nearest integer
  const Vec::V magic = splat(12582912.f).v;
  return {(a.v + magic) - magic};
}
inline Vec exp2i(Vec n) {
  const Vec::I i = (__builtin_convertvector(n.v, Vec::I) + 127) << 23;
  Vec a;
  std::memcpy(&a.v, &i, 16);
  return a;
}
inline Vec select_less(Vec a, Vec limit, Vec b, Vec c) { return {a.v < limit.v ? b.v : c.v}; }
inline Vec sane(Vec a) {
  const Vec::V x = a.v == a.v ? a.v : splat(-INFINITY).v;
  return min(Vec{x}, splat(3.402823466e38f));
}
inline float sum(Vec a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
inline float largest(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1], y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}
template <int Step>
inline Vec swap_lanes(Vec a) {
  return {Vec::V{a.v[Step], a.v[1 ^ Step], a.v[2 ^ Step], a.v[3 ^ Step]}};
}
inline Vec repeat(const float* p) { return load(p); }
[[gnu::always_inline]] inline void store_group_sums(float* out, int, Vec a, Vec b, Vec c, Vec d) {
  out[0] = sum(a);
  out[1] = sum(b);
  out[2] = sum(c);
  out[3] = sum(d);
}
#endif

#if !defined(__AVX512F__)
// x < floor ? 0 : y * 2^n for integral n in [-126, 127].
inline Vec scale_or_zero(Vec y, Vec n, Vec x, Vec floor) {
  return select_less(x, floor, zero(), y * exp2i(n));
}
#endif

inline constexpr bool kFewRegisters = Vec::width < 16;

// Leaves the compiler no choice but to hold x in a register here: it would load what many products
// share once per product instead, and move sums about.
template <class V>
inline void pin([[maybe_unused]] V& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x.v));
#endif
}

// The first n < Vec::width elements, zeros behind them.
template <class T>
inline Vec load_first(const T* p, int n) {
  float x[Vec::width] = {};
  for (int i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return load(x);
}

// e^x for x <= 0, relative error below 2e-7; 0 below -87.3 (results under the smallest normal
// float).
inline Vec exp_nonpositive(Vec x) {
  const Vec floor = splat(-87.33654f);
  const Vec n = round(max(x, floor) * splat(1.44269504f));
  // Two-part ln 2, so that x - n ln 2 keeps its bits.
  Vec r = fma(n, splat(-0.693359375f), max(x, floor));
  r = fma(n, splat(2.12194440e-4f), r);
  Vec y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  y = fma(y, r * r, r + splat(1.f));
  return scale_or_zero(y, n, x, floor);
}

}  // namespace
}  // namespace tokops
