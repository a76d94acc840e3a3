#include "grammar/apply_bitmask.h"

#include "common/isa.h"
#include "common/simd.h"

namespace tokops {
namespace {

constexpr int64_t kWordsPerTask = 1024, kTasksPerThread = 4;

// The bits of a number, and those of four numbers of which a nibble chooses some.
inline uint32_t bits_of(float x) { return as_bits(x); }
inline uint16_t bits_of(bf16 x) { return x.bits; }
inline uint16_t bits_of(f16 x) { return x.bits; }
template <class Bits>
struct Chosen {
  Bits of[16][4];
  constexpr Chosen() : of{} {
    for (int nibble = 0; nibble < 16; ++nibble)
      for (int i = 0; i < 4; ++i) of[nibble][i] = nibble >> i & 1 ? Bits(-1) : Bits(0);
  }
};
template <class Bits>
constexpr Chosen<Bits> kChosen;

// A value for 32 tokens at a time. Logits are read only where a word has bits of both kinds.
template <class T>
struct Fill {
  T value;

  void all(T* x) const {
    const T v = value;  // no store to x changes it
    for (int i = 0; i < 32; ++i) x[i] = v;
  }
  void forbidden(T* x, uint32_t allowed) const {
    using Bits = decltype(bits_of(value));
    const Bits v = bits_of(value);
    for (int i = 0; i < 32; i += 4) {
      const Bits* keep = kChosen<Bits>.of[allowed >> i & 15];
      Bits four[4];
      std::memcpy(four, x + i, sizeof four);
      for (int j = 0; j < 4; ++j) four[j] = Bits((four[j] & keep[j]) | (v & ~keep[j]));
      std::memcpy(x + i, four, sizeof four);
    }
  }
  T changed(T) const { return value; }
};

#if defined(__AVX512BW__)
template <>
void Fill<float>::forbidden(float* x, uint32_t allowed) const {
  const __m512 v = _mm512_set1_ps(value);
  for (int i = 0; i < 2; ++i) {
    const __m512 old = _mm512_loadu_ps(x + 16 * i);
    _mm512_storeu_ps(x + 16 * i, _mm512_mask_blend_ps(__mmask16(allowed >> 16 * i), v, old));
  }
}
#elif defined(__AVX2__)
template <>
void Fill<float>::forbidden(float* x, uint32_t allowed) const {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256 v = _mm256_set1_ps(value);
  for (int i = 0; i < 4; ++i) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(int(allowed >> 8 * i)), bit);
    const __m256 keep = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
    _mm256_storeu_ps(x + 8 * i, _mm256_blendv_ps(v, _mm256_loadu_ps(x + 8 * i), keep));
  }
}
#endif

#if defined(__AVX2__)
// 32 numbers of 16 bits.
inline void fill_halves(void* x, uint32_t allowed, uint16_t value) {
#if defined(__AVX512BW__)
  const __m512i old = _mm512_loadu_si512(x), v = _mm512_set1_epi16(short(value));
  _mm512_storeu_si512(x, _mm512_mask_blend_epi16(allowed, v, old));
#else
  const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                        8192, 16384, short(0x8000));
  const __m256i v = _mm256_set1_epi16(short(value));
  __m256i* at = static_cast<__m256i*>(x);
  for (int i = 0; i < 2; ++i) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi16(short(allowed >> 16 * i)), bit);
    const __m256i keep = _mm256_cmpeq_epi16(set, bit);
    _mm256_storeu_si256(at + i, _mm256_blendv_epi8(v, _mm256_loadu_si256(at + i), keep));
  }
#endif
}
template <>
void Fill<bf16>::forbidden(bf16* x, uint32_t allowed) const {
  fill_halves(x, allowed, value.bits);
}
template <>
void Fill<f16>::forbidden(f16* x, uint32_t allowed) const {
  fill_halves(x, allowed, value.bits);
}
#endif

template <class T>
struct Add {
  float value;

  T changed(T x) const {
    T y;
    from_float(to_float(x) + value, &y);
    return y;
  }
  void all(T* x) const {
    for (int i = 0; i < 32; ++i) x[i] = changed(x[i]);
  }
  void forbidden(T* x, uint32_t allowed) const {
    for (int i = 0; i < 32; ++i) x[i] = allowed >> i & 1 ? x[i] : changed(x[i]);
  }
};

// Whether no more than four bits are set: these are changed one by one, so that lines of the cache
// between them need not come from memory.
inline bool is_few(uint32_t bits) {
  for (int i = 0; i < 4; ++i) bits &= bits - 1;
  return bits == 0;
}

// Words begin..end of one row of the mask.
template <class T, class Change>
void mask_words(const ApplyBitmask& p, int64_t i, int64_t begin, int64_t end,
                const Change& change) {
  const int64_t row = masked_row(p, i);
  if (row < 0) return;
  T* const x = static_cast<T*>(p.logits) + row * p.stride;
  const int32_t* bits = bits_of_row(p.mask, i);
  const int64_t whole = p.V / 32 < end ? p.V / 32 : end;
  const int64_t known = p.mask.width < whole ? p.mask.width : whole;
  int64_t w = begin;
  for (; w < known; ++w) {
    const uint32_t allowed = uint32_t(bits[w]);
    if (allowed == kAllAllowed) continue;
    if (allowed == 0)
      change.all(x + 32 * w);
    else if (is_few(~allowed))
      for (uint32_t left = ~allowed; left; left &= left - 1) {
        T& one = x[32 * w + __builtin_ctz(left)];
        one = change.changed(one);
      }
    else
      change.forbidden(x + 32 * w, allowed);
  }
  for (; w < whole; ++w) change.all(x + 32 * w);
  for (int64_t t = 32 * w; t < p.V && t < 32 * end; ++t)
    if (!is_allowed(p.mask, bits, t)) x[t] = change.changed(x[t]);
}

template <class T>
void mask_rows(const ApplyBitmask& p, const Queue& q) {
  const int64_t words = (p.V + 31) / 32, parts = (words + kWordsPerTask - 1) / kWordsPerTask;
  Fill<T> fill;
  from_float(p.value, &fill.value);
  const Add<T> add{p.value};
  q.parallel(p.count * parts, kTasksPerThread, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t begin = t % parts * kWordsPerTask, end = begin + kWordsPerTask;
      if (p.add)
        mask_words<T>(p, t / parts, begin, end < words ? end : words, add);
      else
        mask_words<T>(p, t / parts, begin, end < words ? end : words, fill);
    }
  });
}

void apply_bitmask_copy(const ApplyBitmask& p, const Queue& q) {
  if (p.dtype == DType::f32)
    mask_rows<float>(p, q);
  else if (p.dtype == DType::bf16)
    mask_rows<bf16>(p, q);
  else
    mask_rows<f16>(p, q);
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(apply_bitmask, apply_bitmask_copy, ApplyBitmask)
