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

// Whether vectors can take scales: float16, a key's beside each other, one or two groups of them,
// or four where registers are wide.
inline bool in_vectors([[maybe_unused]] const Side& x, [[maybe_unused]] int groups) {
#if defined(__AVX2__)
  const bool few = groups <= 2 || (Vec::width == 16 && groups == 4);
  return !x.wide_scale && few && (groups == 1 || x.s_g == 1);
#else
  return false;
#endif
}

// Of keys whose scales lie one behind the other: out[g * kTile + j], as many keys as come a vector
// at a time. Returns how many.
inline int load_vectors([[maybe_unused]] const uint16_t* from, [[maybe_unused]] int n,
                        [[maybe_unused]] int groups, [[maybe_unused]] float factor,
                        [[maybe_unused]] float* out) {
  int j = 0;
#if defined(__AVX512F__)
  const Vec f = splat(factor);
  const auto sixteen = [&](__m256i x) { return Vec{_mm512_cvtph_ps(x)} * f; };
  for (; j + 16 <= n; j += 16) {
    const uint16_t* one = from + j * groups;
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
#elif defined(__AVX2__)
  const __m256 f = _mm256_set1_ps(factor);
  const auto eight = [&](int i) {
    return _mm256_mul_ps(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))), f);
  };
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
}

// The scales or zeros of a tile's keys wherever they lie, one behind the other, zeros behind n.
template <int Groups>
void gather_scales(const Side& x, const uint16_t* data, const Rows& t, uint16_t* to) {
  for (int i = 0; i < t.stretches; ++i) {
    const Stretch& run = t.stretch[i];
    const uint16_t* from = data + run.page * x.s_n + run.slot * x.s_p;
    for (int j = run.from; j < run.to; ++j, from += x.s_p)
      std::memcpy(to + j * Groups, from, Groups * sizeof(uint16_t));
  }
  for (int j = t.n * Groups; j < round_up(t.n, 16) * Groups; ++j) to[j] = 0;
}

// Token geometry. Keys behind n get zeros.
void load_scales(const Side& x, const Rows& t, int hkv, int groups, TileScales& y) {
  const float factor = x.codec == Codec::e4m3 ? 256 : 1;
  const float middle = x.codec == Codec::int8 ? -128 : 0;  // of the codes, where no zero says so
  const auto load = [&](const void* scale, const void* zero, int64_t at, int n, int j) {
    const auto of = [&](const void* data) { return static_cast<const uint16_t*>(data) + at; };
    const int done = load_vectors(of(scale), n, groups, factor, y.scale + j);
    if (done) load_vectors(of(zero ? zero : scale), n, groups, zero ? 1 : middle, y.zero + j);
    return done;
  };
  const bool vectors = in_vectors(x, groups);
  const bool runs = vectors && x.s_p == groups && t.stretches * 8 <= t.n;  // long ones
  if (vectors && !runs) {
    uint16_t raw[2][kTile * 4];
    const auto gather = [&](const void* data, uint16_t* to) {
      const uint16_t* head = static_cast<const uint16_t*>(data) + hkv * x.s_h;
      if (groups == 1) return gather_scales<1>(x, head, t, to);
      if (groups == 2) return gather_scales<2>(x, head, t, to);
      gather_scales<4>(x, head, t, to);
    };
    gather(x.scale, raw[0]);
    if (x.zero) gather(x.zero, raw[1]);
    load(raw[0], x.zero ? raw[1] : nullptr, 0, round_up(t.n, 16), 0);
    return;
  }
  for (int i = 0, j = 0; j < t.n;) {
    i += j == t.stretch[i].to;
    const Stretch& run = t.stretch[i];
    const int64_t at = run.page * x.s_n + hkv * x.s_h + (run.slot + j - run.from) * x.s_p;
    if (runs && j == run.from) {
#if defined(__AVX512F__)
      for (int line = 0; line < (run.to - j) * groups; line += 32) {  // the next tile's, as a rule
        __builtin_prefetch(static_cast<const uint16_t*>(x.scale) + at + kTile * groups + line);
        if (x.zero)
          __builtin_prefetch(static_cast<const uint16_t*>(x.zero) + at + kTile * groups + line);
      }
#endif
      j += load(x.scale, x.zero, at, run.to - j, j);
      if (j > run.from) continue;
    }
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
