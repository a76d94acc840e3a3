// The passes of asap_row.cpp, which includes them once per instruction set, inside a namespace.
// Nothing of the standard library is called in here: its templates would be compiled for that set
// and then be shared by all.

constexpr int kLanes = TOKOPS_LANES, kWord = 32;

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Doubles = double __attribute__((vector_size(8 * kLanes)));

#define TOKOPS_INLINE static inline __attribute__((always_inline))

// What g++ does not make of vectors by itself; bit i stands for lane i. `least` and `most` give b
// for a NaN in a, `at_least` the lanes with a >= b, `choose` a where a bit is set and else b;
// `add_where` adds where a bit is set.
#if TOKOPS_LANES == 16
TOKOPS_INLINE void most(const Floats& a, const Floats& b, Floats& c) {
  c = (Floats)_mm512_max_ps((__m512)a, (__m512)b);
}
TOKOPS_INLINE void least(const Floats& a, const Floats& b, Floats& c) {
  c = (Floats)_mm512_min_ps((__m512)a, (__m512)b);
}
TOKOPS_INLINE uint32_t at_least(const Floats& a, const Floats& b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
}
TOKOPS_INLINE void choose(uint32_t bits, const Floats& a, const Floats& b, Floats& c) {
  c = (Floats)_mm512_mask_mov_ps((__m512)b, __mmask16(bits), (__m512)a);
}
TOKOPS_INLINE void add_where(uint32_t bits, const Floats& a, Floats& sum) {
  sum = (Floats)_mm512_mask_add_ps((__m512)sum, __mmask16(bits), (__m512)sum, (__m512)a);
}
#else
#if TOKOPS_LANES == 8
TOKOPS_INLINE void most(const Floats& a, const Floats& b, Floats& c) {
  c = (Floats)_mm256_max_ps((__m256)a, (__m256)b);
}
TOKOPS_INLINE void least(const Floats& a, const Floats& b, Floats& c) {
  c = (Floats)_mm256_min_ps((__m256)a, (__m256)b);
}
TOKOPS_INLINE uint32_t at_least(const Floats& a, const Floats& b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ)));
}
#else
TOKOPS_INLINE void most(const Floats& a, const Floats& b, Floats& c) { c = a > b ? a : b; }
TOKOPS_INLINE void least(const Floats& a, const Floats& b, Floats& c) { c = a < b ? a : b; }
TOKOPS_INLINE uint32_t at_least(const Floats& a, const Floats& b) {
  const Ints on = (a >= b) & Ints{1, 2, 4, 8};
  return uint32_t(on[0] | on[1] | on[2] | on[3]);
}
#endif
TOKOPS_INLINE void choose(uint32_t bits, const Floats& a, const Floats& b, Floats& c) {
  Ints place = {};
  for (int i = 0; i < kLanes; ++i) place[i] = 1 << i;
  c = ((Ints{} + int32_t(bits)) & place) != 0 ? a : b;
}
TOKOPS_INLINE void add_where(uint32_t bits, const Floats& a, Floats& sum) {
  Floats part;
  choose(bits, a, Floats{}, part);
  sum += part;
}
#endif

TOKOPS_INLINE void load(const float* at, Floats& x) { __builtin_memcpy(&x, at, sizeof x); }

// e^z for z <= 0 to about 1e-7, 0 below -87 and for NaN; +inf counts as 0.
TOKOPS_INLINE void exponential(const Floats& z, Floats& y) {
  const Floats low = Floats{} - 87.f;
  Floats x;
  most(z, low, x);
  least(x, Floats{}, x);
  const Floats shifted = x * 1.44269504f + 12582912.f;  // its last bits are the rounded product
  const Floats n = shifted - 12582912.f;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  y = Floats{} + 1.3847710492e-3f;  // minimax to degree 6
  y = y * r + 8.3743254753e-3f;
  y = y * r + 4.1667938842e-2f;
  y = y * r + 1.6666428611e-1f;
  y = y * r + 4.9999994403e-1f;
  y = y * r + 1.f;
  y = y * r + 1.f;
  y = z > low ? (Floats)((Ints)y + ((Ints)shifted << 23)) : Floats{};
}

// The word of the mask at a token, without bits beyond the row.
TOKOPS_INLINE uint32_t word_at(const Row& row, int32_t token) {
  const size_t word = size_t(token) / kWord;
  const uint32_t bits = row.mask == nullptr ? ~0u
                        : word < row.words  ? uint32_t(row.mask[word])
                                            : 0u;
  const int32_t left = row.count - token;
  return left < kWord ? bits & ((1u << left) - 1) : bits;
}

// 32 logits from a token on; `last` holds those of a word that the row cuts.
TOKOPS_INLINE const float* logits_at(const Row& row, int32_t token, float* last) {
  if (token + kWord <= row.count) return row.logits + token;
  for (int i = 0; i < kWord; ++i)
    last[i] = token + i < row.count ? row.logits[token + i] : kNoLogit;
  return last;
}

// The bits of those of 32 logits that are at least `bound`; NaN never is.
TOKOPS_INLINE uint32_t likely_at(const float* at, float bound) {
  uint32_t bits = 0;
  for (int i = 0; i < kWord; i += kLanes) {
    Floats x;
    load(at + i, x);
    bits |= at_least(x, Floats{} + bound) << i;
  }
  return bits;
}

TOKOPS_INLINE void add(const Floats& x, Doubles& sum) {
  sum += __builtin_convertvector(x, Doubles);
}

TOKOPS_INLINE double total(const Doubles& sum) {
  double all = 0;
  for (int i = 0; i < kLanes; ++i) all += sum[i];
  return all;
}

// NaN is smaller than everything. Several maxima, because each waits for the one before it.
static float largest(const Row& row) {
  constexpr int kMaxima = 4;
  Floats top[kMaxima];
  for (Floats& one : top) one = Floats{} + kNoLogit;
  int32_t t = 0;
  for (; t + kMaxima * kLanes <= row.count; t += kMaxima * kLanes)
    for (int i = 0; i < kMaxima; ++i) {
      Floats x;
      load(row.logits + t + i * kLanes, x);
      most(x, top[i], top[i]);
    }
  float best = kNoLogit;
  for (const Floats& one : top)
    for (int i = 0; i < kLanes; ++i) best = one[i] > best ? one[i] : best;
  for (; t < row.count; ++t) best = row.logits[t] > best ? row.logits[t] : best;
  return best < kMostLogit ? best : kMostLogit;
}

// Eight weights a lane are added in float, these in double.
static void add_up(const Row& row, RowSums& sums) {
  constexpr int kTogether = 8 * kLanes;
  Doubles whole = {}, legal = {};
  Floats all = {}, in = {};
  float last[kWord];
  for (int32_t t = 0; t < row.count; t += kWord) {
    const uint32_t word = word_at(row, t);
    const float* at = logits_at(row, t, last);
    for (int i = 0; i < kWord; i += kLanes) {
      Floats x, e;
      load(at + i, x);
      exponential(x - sums.top, e);
      all += e;
      add_where(word >> i, e, in);
    }
    sums.legal_count += __builtin_popcount(word & likely_at(at, -kMostLogit));
    if ((t + kWord) % kTogether == 0 || t + kWord >= row.count) {
      add(all, whole);
      add(in, legal);
      all = in = Floats{};
    }
  }
  sums.whole += total(whole);
  sums.legal += total(legal);
}

// Lists the legal tokens of [first, end) with a logit from `bound` on; returns how many, and adds
// their weights to `listed`.
static int32_t list_tokens(const Row& row, int32_t first, int32_t end, float top, float bound,
                           int32_t* tokens, double& listed) {
  float last[kWord], logits[kChunk + kLanes];
  int32_t found = 0;
  for (int32_t t = first; t < end; t += kWord) {
    const float* at = logits_at(row, t, last);
    uint32_t bits = word_at(row, t) & likely_at(at, bound);
    for (; bits != 0; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      tokens[found] = t + i;
      logits[found++] = at[i];
    }
  }
  for (int i = 0; i < kLanes; ++i) logits[found + i] = kNoLogit;
  Doubles sum = {};
  for (int32_t i = 0; i < found; i += kLanes) {
    Floats x, e;
    load(logits + i, x);
    exponential(x - top, e);
    add(e, sum);
  }
  listed += total(sum);
  return found;
}

// The summed weights of the legal tokens with a smaller logit than `bound`.
static double rest_below(const Row& row, float top, float bound) {
  Doubles sum = {};
  float last[kWord];
  for (int32_t t = 0; t < row.count; t += kWord) {
    const float* at = logits_at(row, t, last);
    const uint32_t bits = word_at(row, t) & ~likely_at(at, bound);
    if (bits == 0) continue;
    for (int i = 0; i < kWord; i += kLanes) {
      Floats x, e;
      load(at + i, x);
      exponential(x - top, e);
      choose(bits >> i, e, Floats{}, e);
      add(e, sum);
    }
  }
  return total(sum);
}

static void forbid(float* logits, const Row& row) {
  for (int32_t t = 0; t < row.count; t += kWord) {
    const int32_t n = row.count - t < kWord ? row.count - t : kWord;
    const uint32_t word = word_at(row, t);
    if (n == kWord && word != ~0u) {
      for (int i = 0; i < kWord; i += kLanes) {
        Floats x;
        load(logits + t + i, x);
        choose(word >> i, x, Floats{} + kNoLogit, x);
        __builtin_memcpy(logits + t + i, &x, sizeof x);
      }
    } else if (n < kWord) {
      for (int32_t i = 0; i < n; ++i)
        if (!(word >> i & 1)) logits[t + i] = kNoLogit;
    }
  }
}

#undef TOKOPS_INLINE
