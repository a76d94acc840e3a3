// Scores and values of one tile of packed keys, scales and zeros included. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"
#include "attention/packed_dot16.h"

namespace tokops {
namespace {

constexpr int kMaxGroups = kMaxDim / 16;

// Scales and zeros of a tile, [group of dimensions][key].
struct TileScales {
  alignas(64) float scale[kMaxGroups * kTile], zero[kMaxGroups * kTile];
};

struct PackedScratch {
  TileScales scales;
  alignas(64) float w[kMaxRows * kTile], q[kMaxRows * kMaxDim], tmp[kMaxRows * kMaxDim];
  float sums[kMaxRows * kMaxGroups];  // of the queries by group, [row][group]
  float add[kMaxRows], none[kMaxRows];
  bool by_integers;  // q16 and q_scale hold the queries too
  alignas(64) int16_t q16[kMaxRows * kMaxDim];
  float q_scale[kMaxRows];
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

// The scales of a run of keys that lie one behind the other, one or two groups each, eight keys at
// a time.
inline bool load_run(const Side& x, const void* data, int64_t at, int n, int groups, float factor,
                     float* out) {
#if defined(__AVX2__)
  if (x.wide_scale || n % 8 || x.s_g != 1 || x.s_p != groups || groups > 2) return false;
  const f16* from = static_cast<const f16*>(data) + at;
  const __m256 f = _mm256_set1_ps(factor);
  const auto eight = [&](int i) {
    return _mm256_mul_ps(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))), f);
  };
  for (int j = 0; j < n; j += 8) {
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
  return true;
#else
  return false;
#endif
}

// Token geometry. Keys behind n get zeros.
void load_scales(const Side& x, const Rows& t, int hkv, int groups, TileScales& y) {
  const auto place = [&](int j) {
    return t.spot[j].page * x.s_n + hkv * x.s_h + t.spot[j].slot * x.s_p;
  };
  bool run = t.spot[t.n - 1].page == t.spot[0].page &&
             t.spot[t.n - 1].slot - t.spot[0].slot == t.n - 1 &&
             load_run(x, x.scale, place(0), t.n, groups, x.codec == Codec::e4m3 ? 256 : 1, y.scale);
  if (run && x.zero) run = load_run(x, x.zero, place(0), t.n, groups, 1, y.zero);
  if (run && !x.zero)
    run = load_run(x, x.scale, place(0), t.n, groups, x.codec == Codec::int8 ? -128 : 0, y.zero);
  const int width = round_up(t.n, 16);
  for (int g = 0; g < groups; ++g) {
    float *scale = y.scale + g * kTile, *zero = y.zero + g * kTile;
    for (int j = 0; j < t.n && !run; ++j) {
      scale[j] = scale_at(x, place(j) + g * x.s_g);
      zero[j] = zero_at(x, place(j) + g * x.s_g);
    }
    for (int j = t.n; j < width; ++j) scale[j] = zero[j] = 0;
  }
}

void load_norms(const Side& x, const Rows& t, int hkv, float* norm) {
  for (int j = 0; j < t.n; ++j)
    norm[j] =
        half_value(x.norm[t.spot[j].page * x.norm_n + hkv * x.norm_h + t.spot[j].slot * x.norm_p]);
  for (int j = t.n; j < round_up(t.n, 16); ++j) norm[j] = 1;
}

// Calls f(from, to, offset of the scales of channel 0) for runs of keys that share them.
template <class F>
void channel_runs(const Side& x, const Rows& t, int hkv, const F& f) {
  for (int j = 0; j < t.n;) {
    const int page = t.spot[j].page, group = t.spot[j].slot / x.group, from = j;
    while (j < t.n && t.spot[j].page == page && t.spot[j].slot / x.group == group) ++j;
    f(from, j, page * x.s_n + hkv * x.s_h + group * x.s_p);
  }
}

// The rows of a tile as bytes, and some behind them, for products of four keys at a time.
struct ByteRows {
  const uint8_t* at[kTile + 4];
  explicit ByteRows(const char* const* rows) {
    for (int j = 0; j < kTile + 4; ++j)
      at[j] = reinterpret_cast<const uint8_t*>(rows[j < kTile ? j : kTile - 1]);
  }
};

void sum_groups(const float* q, int rows, int dim, int groups, float* sums) {
  const int size = dim / groups;
  for (int r = 0; r < rows; ++r)
    for (int g = 0; g < groups; ++g) {
      float total = 0;
      for (int c = 0; c < size; ++c) total += q[r * dim + g * size + c];
      sums[r * groups + g] = total;
    }
}

// s[r * kTile + j] = q_r . k_j; x.q holds `rows` queries of `dim` floats and x.sums their sums by
// group.
void score_packed(const Side& k, const Rows& t, int hkv, int rows, int dim, PackedScratch& x,
                  float* s, Ahead& ahead) {
  const ByteRows keys(t.k);
  const int groups = groups_of(k, dim);
  if (k.channel) {
    channel_runs(k, t, hkv, [&](int from, int to, int64_t at) {
      for (int r = 0; r < rows; ++r) {
        float bias = 0;
        for (int c = 0; c < dim; ++c) {
          const float q = x.q[r * dim + c];
          x.tmp[r * dim + c] = q * scale_at(k, at + c * k.s_g);
          bias += q * zero_at(k, at + c * k.s_g);
        }
        x.add[r] = bias;
      }
      with_codec(k.codec, [&](auto codec) {
        constexpr Codec C = decltype(codec)::value;
        packed_scores<C, true>(x.tmp, dim, rows, 1, units_of<C>(dim), keys.at + from, to - from,
                               nullptr, 0, x.w, kTile, ahead);
      });
      for (int r = 0; r < rows; ++r)
        for (int j = from; j < to; ++j) s[r * kTile + j] = x.w[r * kTile + j - from] + x.add[r];
    });
    return;
  }
  load_scales(k, t, hkv, groups, x.scales);
  with_codec(k.codec, [&](auto codec) {
    constexpr Codec C = decltype(codec)::value;
#if defined(__AVX2__)
    if constexpr (C == Codec::int8 || C == Codec::int4 || C == Codec::int2)
      if (x.by_integers) {
        scores16<C>(x.q16, x.q_scale, dim, rows, groups, keys.at, t.n, x.scales.scale, kTile, x.tmp,
                    s, kTile, ahead);
        return;
      }
#endif
    const int units = units_of<C>(dim / groups);
    if (groups == 1)
      packed_scores<C, true>(x.q, dim, rows, 1, units, keys.at, t.n, nullptr, 0, s, kTile, ahead);
    else
      packed_scores<C, false>(x.q, dim, rows, groups, units, keys.at, t.n, x.scales.scale, kTile, s,
                              kTile, ahead);
  });
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < t.n; j += Vec::width) {
      Vec y = load(s + r * kTile + j);
      if (groups == 1) y = y * load(x.scales.scale + j);
      for (int g = 0; g < groups; ++g)
        y = fma(splat(x.sums[r * groups + g]), load(x.scales.zero + g * kTile + j), y);
      store(s + r * kTile + j, y);
    }
}

// out = out * keep + sum_j w_j v_j for rows of weights [row][kTile], zero behind n.
void add_packed(const Side& v, const Rows& t, int hkv, const float* w, int rows, int dim,
                const float* keep, PackedScratch& x, float* out, int os, Ahead& ahead) {
  const ByteRows values(t.v);
  if (v.channel) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < dim; ++c) out[r * os + c] *= keep[r];
    for (int r = 0; r < rows; ++r) x.none[r] = 0;
    channel_runs(v, t, hkv, [&](int from, int to, int64_t at) {
      for (int i = 0; i < rows * dim; ++i) x.tmp[i] = 0;
      with_codec(v.codec, [&](auto codec) {
        constexpr Codec C = decltype(codec)::value;
        packed_values<C>(w + from, kTile, rows, values.at + from, to - from, 0, units_of<C>(dim),
                         x.none, x.none, x.tmp, dim, ahead);
      });
      for (int r = 0; r < rows; ++r) {
        float total = 0;
        for (int j = from; j < to; ++j) total += w[r * kTile + j];
        for (int c = 0; c < dim; ++c)
          out[r * os + c] +=
              x.tmp[r * dim + c] * scale_at(v, at + c * v.s_g) + total * zero_at(v, at + c * v.s_g);
      }
    });
    return;
  }
  const int groups = groups_of(v, dim);
  load_scales(v, t, hkv, groups, x.scales);
  for (int g = 0; g < groups; ++g) {
    for (int r = 0; r < rows; ++r) {
      Vec total = zero();
      for (int j = 0; j < t.n; j += Vec::width) {
        const Vec y = load(w + r * kTile + j);
        total = fma(y, load(x.scales.zero + g * kTile + j), total);
        store(x.w + r * kTile + j, y * load(x.scales.scale + g * kTile + j));
      }
      x.add[r] = sum(total);
    }
    with_codec(v.codec, [&](auto codec) {
      constexpr Codec C = decltype(codec)::value;
      const int units = units_of<C>(dim / groups);
      packed_values<C>(x.w, kTile, rows, values.at, t.n, g * units, (g + 1) * units, keep, x.add,
                       out, os, ahead);
    });
  }
}

}  // namespace
}  // namespace tokops
