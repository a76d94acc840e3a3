// The passes of asap_row.cpp, which includes them once per instruction set, inside a namespace.
// Nothing of the standard library is called in here: its templates would be compiled for that set
// and then be shared by all.

constexpr int kLanes = TOKOPS_LANES, kWord = 32;

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Doubles = double __attribute__((vector_size(8 * kLanes)));

#define TOKOPS_INLINE static inline __attribute__((always_inline))

// Some logits: NaN is -inf, +inf the largest number.
TOKOPS_INLINE void load(const float* at, Floats& x) {
  __builtin_memcpy(&x, at, sizeof x);
  x = x == x ? x : Floats{} + kNoLogit;
  x = x > Floats{} + kMostLogit ? Floats{} + kMostLogit : x;
}

// e^z for z <= 0 to about 1e-7, 0 below -87 and for NaN; +inf counts as 0.
TOKOPS_INLINE void exponential(const Floats& z, Floats& y) {
  const Floats low = Floats{} - 87.f;
  Floats x = z < Floats{} ? z : Floats{};
  x = x > low ? x : low;
  const Floats n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounds
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  y = Floats{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + (r + 1.f);
  const Ints bits = (Ints)y + (__builtin_convertvector(n, Ints) << 23);
  y = z > low ? (Floats)bits : Floats{};
}

// All bits of the lanes whose bit is set.
TOKOPS_INLINE void lanes_of(uint32_t bits, Ints& on) {
  Ints place = {};
  for (int i = 0; i < kLanes; ++i) place[i] = 1 << i;
  on = ((Ints{} + int32_t(bits)) & place) != 0;
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

static float largest(const Row& row) {
  Floats top = Floats{} + kNoLogit;
  float last[kWord];
  for (int32_t t = 0; t < row.count; t += kWord) {
    const float* at = logits_at(row, t, last);
    for (int i = 0; i < kWord; i += kLanes) {
      Floats x;
      load(at + i, x);
      top = x > top ? x : top;
    }
  }
  float best = top[0];
  for (int i = 1; i < kLanes; ++i) best = top[i] > best ? top[i] : best;
  return best;
}

// Weights of one word are added in float, words in double.
static void add_up(const Row& row, RowSums& sums) {
  Doubles legal = {}, others = {};
  Ints counted = {};
  const Floats top = Floats{} + sums.top, none = Floats{} + kNoLogit;
  float last[kWord];
  for (int32_t t = 0; t < row.count; t += kWord) {
    const uint32_t word = word_at(row, t);
    const float* at = logits_at(row, t, last);
    Floats in = {}, out = {};
    for (int i = 0; i < kWord; i += kLanes) {
      Floats x, e;
      __builtin_memcpy(&x, at + i, sizeof x);
      exponential(x - top, e);
      if (word == 0) {
        out += e;
      } else if (word == ~0u) {
        in += e;
        counted -= x > none;
      } else {
        Ints on;
        lanes_of(word >> i, on);
        in += on ? e : Floats{};
        out += on ? Floats{} : e;
        counted -= on & (x > none);
      }
    }
    if (word != 0) legal += __builtin_convertvector(in, Doubles);
    if (word != ~0u) others += __builtin_convertvector(out, Doubles);
  }
  for (int i = 0; i < kLanes; ++i) {
    sums.legal += legal[i];
    sums.others += others[i];
    sums.legal_count += counted[i];
  }
}

// The legal tokens of [first, end) with a logit from `bound` on; `rest` grows by the others'
// weights if asked.
static int32_t list_tokens(const Row& row, int32_t first, int32_t end, float top, float bound,
                           bool add_rest, int32_t* tokens, double* weights, double& rest) {
  Doubles sum = {};
  int32_t found = 0;
  float last[kWord];
  for (int32_t t = first; t < end; t += kWord) {
    const uint32_t word = word_at(row, t);
    if (word == 0) continue;
    const float* at = logits_at(row, t, last);
    if (!add_rest) {  // most words hold nothing that is likely
      Ints likely = {};
      for (int i = 0; i < kWord; i += kLanes) {
        Floats x;
        __builtin_memcpy(&x, at + i, sizeof x);
        likely |= x >= Floats{} + bound;
      }
      uint64_t halves[kLanes / 2], any = 0;
      __builtin_memcpy(halves, &likely, sizeof likely);
      for (int i = 0; i < kLanes / 2; ++i) any |= halves[i];
      if (any == 0) continue;
    }
    for (int i = 0; i < kWord; i += kLanes) {
      Floats x, e;
      Ints on;
      load(at + i, x);
      lanes_of(word >> i, on);
      const Ints listed = on & (x >= Floats{} + bound) & (x > Floats{} + kNoLogit);
      exponential(x - (Floats{} + top), e);
      sum += __builtin_convertvector(((on & ~listed) ? e : Floats{}), Doubles);
      for (int j = 0; j < kLanes; ++j) {
        if (!listed[j]) continue;
        tokens[found] = t + i + j;
        weights[found++] = double(e[j]);
      }
    }
  }
  for (int i = 0; i < kLanes; ++i) rest += sum[i];
  return found;
}

static void forbid(float* logits, const Row& row) {
  for (int32_t t = 0; t < row.count; t += kWord) {
    const int32_t n = row.count - t < kWord ? row.count - t : kWord;
    const uint32_t word = word_at(row, t);
    if (n == kWord && word != ~0u) {
      for (int i = 0; i < kWord; i += kLanes) {
        Floats x;
        Ints on;
        __builtin_memcpy(&x, logits + t + i, sizeof x);
        lanes_of(word >> i, on);
        x = on ? x : Floats{} + kNoLogit;
        __builtin_memcpy(logits + t + i, &x, sizeof x);
      }
    } else if (n < kWord) {
      for (int32_t i = 0; i < n; ++i)
        if (!(word >> i & 1)) logits[t + i] = kNoLogit;
    }
  }
}

#undef TOKOPS_INLINE
