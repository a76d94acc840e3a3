#include "attention/topk_positions.h"

#include <cstring>

#include "common/isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Per row: guess a pivot from a sample, collect the keys and positions at or above it in one pass
// over the scores, find the k-th largest key among them by bisection, drop the rest. A guess that
// turns out too high costs a second pass; any input gives the exact result.
namespace tokops {
namespace {

constexpr int kSample = 1024;
constexpr int kSlack = 16;  // append() stores whole vectors

// One lane, for tails and for processors without the vectors below.
struct One {
  static constexpr int width = 1;
  using Ints = int32_t;
  static Ints load(const int32_t* p) { return *p; }
  static Ints splat(int32_t x) { return x; }
  static Ints iota(int32_t from) { return from; }
  static Ints key(Ints bits) { return score_key(bits); }
  static uint32_t greater(Ints a, Ints b) { return a > b; }
  static int count(uint32_t mask) { return int(mask); }
  static void append(int32_t* to, Ints a, uint32_t) { *to = a; }
};

#if defined(__AVX512F__)
struct Wide {
  static constexpr int width = 16;
  using Ints = __m512i;
  static Ints load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Ints splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Ints iota(int32_t from) {
    return _mm512_add_epi32(
        splat(from), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static Ints key(Ints bits) {
    const Ints m = _mm512_and_si512(bits, splat(INT32_MAX));
    const Ints x = _mm512_mask_sub_epi32(m, _mm512_movepi32_mask(bits), splat(0), m);
    return _mm512_mask_mov_epi32(x, greater(m, splat(0x7f800000)), splat(kKeyOfNan));
  }
  static __mmask16 greater(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static int count(uint32_t mask) { return __builtin_popcount(mask); }
  static void append(int32_t* to, Ints a, uint32_t mask) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), a));
  }
};
#elif defined(__AVX2__)
// Byte j of entry m: the j-th set bit of m.
struct Packing {
  uint8_t lane[256][8];
  constexpr Packing() : lane() {
    for (int m = 0; m < 256; ++m)
      for (int bit = 0, j = 0; bit < 8; ++bit)
        if ((m >> bit) & 1) lane[m][j++] = uint8_t(bit);
  }
};
constexpr Packing kPacking;

struct Wide {
  static constexpr int width = 8;
  using Ints = __m256i;
  static Ints load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Ints splat(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints iota(int32_t from) {
    return _mm256_add_epi32(splat(from), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Ints key(Ints bits) {
    const Ints m = _mm256_and_si256(bits, splat(INT32_MAX)), s = _mm256_srai_epi32(bits, 31);
    const Ints x = _mm256_sub_epi32(_mm256_xor_si256(m, s), s);
    const Ints nan = _mm256_cmpgt_epi32(m, splat(0x7f800000));
    return _mm256_blendv_epi8(x, splat(kKeyOfNan), nan);
  }
  static uint32_t greater(Ints a, Ints b) {
    return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b))));
  }
  static int count(uint32_t mask) { return __builtin_popcount(mask); }
  static void append(int32_t* to, Ints a, uint32_t mask) {
    const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPacking.lane[mask]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_permutevar8x32_epi32(a, _mm256_cvtepu8_epi32(lanes)));
  }
};
#else
using Wide = One;
#endif

struct Found {  // candidates of one row, in order of position
  int32_t *keys, *positions;
  int64_t n;
};

// Appends the scores of [i, end) with a key of at least `pivot`; returns where whole vectors end.
template <class V>
int64_t collect(const int32_t* scores, int64_t i, int64_t end, int32_t pivot, Found* found) {
  const typename V::Ints below = V::splat(pivot - 1);
  int64_t n = found->n;
  for (; i + V::width <= end; i += V::width) {
    const typename V::Ints key = V::key(V::load(scores + i));
    const uint32_t mask = V::greater(key, below);
    V::append(found->keys + n, key, mask);
    V::append(found->positions + n, V::iota(int32_t(i)), mask);
    n += V::count(mask);
  }
  found->n = n;
  return i;
}

void collect_row(const int32_t* scores, int64_t length, int32_t pivot, Found* found) {
  found->n = 0;
  const int64_t i = collect<Wide>(scores, 0, length, pivot, found);
  collect<One>(scores, i, length, pivot, found);
}

int64_t count_from(const int32_t* keys, int64_t n, int32_t least) {
  int64_t total = 0;
  for (int64_t i = 0; i < n;) {  // 32-bit sums inside keep the loop in vectors of keys
    const int64_t end = i + 4096 < n ? i + 4096 : n;
    int32_t part = 0;
    for (; i < end; ++i) part += keys[i] >= least;
    total += part;
  }
  return total;
}

// A key that at least `rank` of n >= rank keys reach: the largest one, or an earlier guess that no
// more than `enough` reach. With enough == rank this is exact as a selection: ties are left only at
// the returned key.
int32_t reached_by(const int32_t* keys, int64_t n, int64_t rank, int64_t enough) {
  int32_t lo = INT32_MAX, hi = INT32_MIN;
  for (int64_t i = 0; i < n; ++i) {
    lo = keys[i] < lo ? keys[i] : lo;
    hi = keys[i] > hi ? keys[i] : hi;
  }
  while (lo < hi) {
    const uint32_t gap = uint32_t(hi) - uint32_t(lo);
    const int32_t middle = int32_t(uint32_t(lo) + gap / 2 + (gap & 1));
    const int64_t c = count_from(keys, n, middle);
    if (c >= rank && c <= enough) return middle;
    if (c >= rank)
      lo = middle;
    else
      hi = middle - 1;
  }
  return lo;
}

// A pivot that somewhat more than `limit` of the scores should reach, from scores picked one per
// stratum.
int32_t guess_pivot(const int32_t* scores, int64_t length, int64_t limit, int32_t* keys) {
  const int64_t stratum = length / kSample;
  uint32_t state = 1;
  for (int64_t j = 0; j < kSample; ++j) {
    state = state * 1664525u + 1013904223u;
    keys[j] = score_key(scores[j * stratum + int64_t((uint64_t(state) * uint64_t(stratum)) >> 32)]);
  }
  const int64_t expected = limit * kSample / length + 1;
  int64_t spread = 1;
  while (spread * spread < expected) ++spread;
  const int64_t rank = expected + 3 * spread;  // three deviations: a second pass is rare
  return reached_by(keys, kSample, rank, rank + rank / 8);
}

// Keeps the `limit` best of the candidates: all above `cut`, and the first at it. In place.
template <class V>
int64_t keep(const Found& found, int64_t i, int32_t cut, int64_t* kept, int64_t* ties) {
  const typename V::Ints at = V::splat(cut), below = V::splat(cut - 1);
  for (; i + V::width <= found.n; i += V::width) {
    const typename V::Ints key = V::load(found.keys + i), position = V::load(found.positions + i);
    const uint32_t above = V::greater(key, at);
    uint32_t equal = V::greater(key, below) & ~above;
    if (*ties == 0) equal = 0;
    while (V::count(equal) > *ties) equal ^= 0x80000000u >> __builtin_clz(equal);
    *ties -= V::count(equal);
    V::append(found.positions + *kept, position, above | equal);
    *kept += V::count(above | equal);
  }
  return i;
}

void keep_best(Found* found, int64_t limit) {
  const int32_t cut = reached_by(found->keys, found->n, limit, limit);
  int64_t kept = 0;
  int64_t ties = limit - (cut == INT32_MAX ? 0 : count_from(found->keys, found->n, cut + 1));
  const int64_t i = keep<Wide>(*found, 0, cut, &kept, &ties);
  keep<One>(*found, i, cut, &kept, &ties);
  found->n = kept;
}

void select_row(const TopkPositions& p, int64_t row, Found found) {
  const auto* scores = reinterpret_cast<const int32_t*>(p.scores) + row * p.length;
  const int64_t length = p.lens ? p.lens[row] : p.length;
  int64_t limit = p.k && p.k[row] < p.k_max ? p.k[row] : p.k_max;
  int32_t threshold = int32_t(0xff800000u);  // -inf
  if (p.threshold) std::memcpy(&threshold, p.threshold + row, 4);
  const int32_t least = floor_key(threshold);

  found.n = 0;
  if (limit > 0) {
    int32_t pivot = least;
    if (length >= 4 * kSample && limit <= length / 4) {
      const int32_t guess = guess_pivot(scores, length, limit, found.keys);
      pivot = guess > least ? guess : least;
    }
    collect_row(scores, length, pivot, &found);
    if (found.n < limit && pivot > least) collect_row(scores, length, least, &found);
    if (found.n > limit) keep_best(&found, limit);
  }
  int32_t* out = p.positions + row * p.k_max;
  if (found.n) std::memcpy(out, found.positions, size_t(found.n) * 4);
  if (p.k_max > found.n) std::memset(out + found.n, 0xff, size_t(p.k_max - found.n) * 4);  // -1
  p.counts[row] = int32_t(found.n);
}

int64_t slot_ints(const TopkPositions& p) {
  const int64_t n = p.length > kSample ? p.length : kSample;
  return (n + kSlack + 15) / 16 * 16;
}

void topk_positions_copy(const TopkPositions& p, const Queue& q) {
  auto* counter = static_cast<int64_t*>(p.workspace);  // next row to take: lengths may differ a lot
  *counter = 0;
  const int64_t room = slot_ints(p);
  q.parallel(p.slots, 1, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s) {
      int32_t* keys = static_cast<int32_t*>(p.workspace) + 16 + 2 * s * room;
      for (int64_t row; (row = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < p.rows;)
        select_row(p, row, {keys, keys + room, 0});
    }
  });
}

}  // namespace

#if TOKOPS_ISA_IS_BASE
size_t topk_positions_workspace(const TopkPositions& p) {
  return size_t(64 + 8 * p.slots * slot_ints(p));
}
#endif
}  // namespace tokops
TOKOPS_ISA_KERNEL(topk_positions, topk_positions_copy, TopkPositions)
