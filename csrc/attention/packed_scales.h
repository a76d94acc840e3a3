// Scales, zeros and norms of a tile of packed rows. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"
#include "attention/packed_rows.h"

namespace tokops {
namespace {

constexpr int kMaxGroups = kMaxDim / 16;

// Scales and zeros of a tile, [group of dimensions][key], or of a run of its keys, [dimension].
struct TileScales {
  alignas(64) float scale[kMaxGroups * kTile], zero[kMaxGroups * kTile];
};

inline float stored(const Side& x, const void* data, int64_t at) {
  return x.wide_scale ? static_cast<const float*>(data)[at]
                      : half_value(static_cast<const uint16_t*>(data)[at]);
}
// Bytes of e4m3 are unpacked as float16 2^-8 of their value.
inline float scale_at(const Side& x, int64_t at) {
  return stored(x, x.scale, at) * (x.codec == Codec::e4m3 ? 256.f : 1.f);
}
inline float zero_at(const Side& x, int64_t at) {
  if (x.zero) return stored(x, x.zero, at);
  return x.codec == Codec::int8 ? -128 * stored(x, x.scale, at) : 0.f;
}

inline int groups_of(const Side& x, int dim) { return x.channel ? 1 : dim / x.group; }

// The scales of keys that lie one behind the other, one or two groups each (or four, where
// registers are wide): as many as come a vector at a time. Returns how many.
inline int load_vectors(const Side& x, const void* data, int64_t at, int n, int groups,
                        float factor, float* out) {
#if defined(__AVX2__)
  const bool few = groups <= 2 || (Vec::width == 16 && groups == 4);
  if (x.wide_scale || x.s_g != 1 || x.s_p != groups || !few) return 0;
  const f16* from = static_cast<const f16*>(data) + at;
#if defined(__AVX512F__)
  const Vec f = splat(factor);
  const auto sixteen = [&](__m256i x) { return Vec{_mm512_cvtph_ps(x)} * f; };
  int j = 0;
  for (; j + 16 <= n; j += 16) {
    const f16* one = from + j * groups;
    for (int i = 0; i < groups; i += 2)  // the next tile's lie behind, as a rule
      __builtin_prefetch(one + kTile * groups + i * 16, 0, 3);
    if (groups == 1) {
      store(out + j, sixteen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(one))));
      continue;
    }
    __m512i two = _mm512_loadu_si512(one);  // groups beside each other
    for (int g = 0; g < groups; g += 2) {
      if (groups == 4) {
        const __m512i first =
            _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
        const __m512i order = _mm512_or_si512(_mm512_slli_epi32(first, 16), first);
        two = _mm512_permutex2var_epi16(
            _mm512_loadu_si512(one), _mm512_add_epi32(order, _mm512_set1_epi32((g + 1) << 16 | g)),
            _mm512_loadu_si512(one + 32));
      }
      store(out + g * kTile + j, sixteen(_mm512_cvtepi32_epi16(two)));
      store(out + (g + 1) * kTile + j, sixteen(_mm512_cvtepi32_epi16(_mm512_srli_epi32(two, 16))));
    }
  }
#else
  const __m256 f = _mm256_set1_ps(factor);
  const auto eight = [&](int i) {
    return _mm256_mul_ps(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))), f);
  };
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256 a = eight(j * groups);
    if (groups == 1) {
      _mm256_storeu_ps(out + j, a);
      continue;
    }
    const __m256 b = eight(j * 2 + 8);
    const auto order = [](__m256 y) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(y), 0xd8));
    };
    _mm256_storeu_ps(out + j, order(_mm256_shuffle_ps(a, b, 0x88)));
    _mm256_storeu_ps(out + kTile + j, order(_mm256_shuffle_ps(a, b, 0xdd)));
  }
#endif
  return j;
#else
  return 0;
#endif
}

// Token geometry. Keys behind n get zeros.
void load_scales(const Side& x, const Rows& t, int hkv, int groups, TileScales& y) {
  const float factor = x.codec == Codec::e4m3 ? 256 : 1;
  const float middle = x.codec == Codec::int8 ? -128 : 0;  // of the codes, where no zero says so
  const auto place = [&](const Stretch& run, int j) {
    return run.page * x.s_n + hkv * x.s_h + (run.slot + j - run.from) * x.s_p;
  };
  const auto load_run = [&](const Stretch& run, int j) {
    const int64_t at = place(run, j);
    const int n = run.to - j;
    const int done = load_vectors(x, x.scale, at, n, groups, factor, y.scale + j);
    if (done)
      load_vectors(x, x.zero ? x.zero : x.scale, at, n, groups, x.zero ? 1 : middle, y.zero + j);
    return done;
  };
  const bool long_ones = t.stretches * 8 <= t.n;  // no branch foresees where short ones end
  for (int i = 0, j = 0; j < t.n;) {
    i += j == t.stretch[i].to;
    const Stretch& run = t.stretch[i];
    if (long_ones && j == run.from) j += load_run(run, j);
    if (j == run.to) continue;
    const int64_t at = place(run, j);
    for (int g = 0; g < groups; ++g) {
      const float one = stored(x, x.scale, at + g * x.s_g);
      y.scale[g * kTile + j] = one * factor;
      y.zero[g * kTile + j] = x.zero ? stored(x, x.zero, at + g * x.s_g) : one * middle;
    }
    ++j;
  }
  for (int g = 0; g < groups; ++g)
    for (int j = t.n; j < round_up(t.n, 16); ++j)
      y.scale[g * kTile + j] = y.zero[g * kTile + j] = 0;
}

void load_norms(const Side& x, const Rows& t, int hkv, float* norm) {
  for (int i = 0; i < t.stretches; ++i) {
    const Stretch& run = t.stretch[i];
    const uint16_t* from = x.norm + run.page * x.norm_n + hkv * x.norm_h + run.slot * x.norm_p;
    for (int j = run.from; j < run.to; ++j) norm[j] = half_value(from[(j - run.from) * x.norm_p]);
  }
  for (int j = t.n; j < round_up(t.n, 16); ++j) norm[j] = 1;
}

// Calls f(from, to, offset of the scales of channel 0) for runs of keys that share them.
template <class F>
void channel_runs(const Side& x, const Rows& t, int hkv, const F& f) {
  const auto group_of = [&](const Stretch& run, int j) {
    return (run.slot + j - run.from) / x.group;
  };
  for (int i = 0, j = 0; j < t.n;) {
    const int page = t.stretch[i].page, group = group_of(t.stretch[i], j), from = j;
    while (j < t.n && t.stretch[i].page == page && group_of(t.stretch[i], j) == group) {
      const Stretch& run = t.stretch[i];
      const int end = run.from + (group + 1) * x.group - run.slot;  // of the group in this stretch
      j = end < run.to ? end : run.to;
      if (j == run.to) ++i;
    }
    f(from, j, page * x.s_n + hkv * x.s_h + group * x.s_p);
  }
}

// Channel geometry: scales and zeros of all dimensions; `at` is the scale of the first.
void load_channels(const Side& x, int64_t at, int dim, TileScales& y) {
  for (int c = 0; c < dim; ++c) {
    y.scale[c] = scale_at(x, at + c * x.s_g);
    y.zero[c] = zero_at(x, at + c * x.s_g);
  }
}

}  // namespace
}  // namespace tokops
