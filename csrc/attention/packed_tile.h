// Scores and values of one tile of packed keys, scales and zeros included. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"
#include "attention/packed_columns.h"

namespace tokops {
namespace {

constexpr int kMaxGroups = kMaxDim / 16;

// Scales and zeros of a tile, [group of dimensions][key], or of a run of its keys, [dimension].
struct TileScales {
  alignas(64) float scale[kMaxGroups * kTile], zero[kMaxGroups * kTile];
};

// Queries lie as packed_dots wants them.
struct PackedScratch {
  TileScales scales;
  alignas(64) float w[kMaxRows * kTile], q[kMaxRows * kMaxDim], tmp[kMaxRows * kMaxDim];
  float sums[kMaxRows * kMaxGroups];               // of the queries by group, [row][group]
  alignas(64) float dots[4 * kMaxGroups * kDots];  // of up to four rows, [group][row][key]
  float add[kMaxRows], none[kMaxRows];
  bool by_integers;  // `rounded` and q_scale hold the queries too
#if defined(__AVX512VNNI__)
  alignas(64) int8_t rounded[kMaxRows * kMaxDim];
#else
  alignas(64) int16_t rounded[kMaxRows * kMaxDim];
#endif
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

// The scales of keys that lie one behind the other, one or two groups each: as many as come eight
// at a time. Returns how many.
inline int load_eights(const Side& x, const void* data, int64_t at, int n, int groups, float factor,
                       float* out) {
#if defined(__AVX2__)
  if (x.wide_scale || x.s_g != 1 || x.s_p != groups || groups > 2) return 0;
  const f16* from = static_cast<const f16*>(data) + at;
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
  const auto load_eight = [&](const Stretch& run, int j) {
    const int64_t at = place(run, j);
    const int n = run.to - j;
    const int done = load_eights(x, x.scale, at, n, groups, factor, y.scale + j);
    if (done)
      load_eights(x, x.zero ? x.zero : x.scale, at, n, groups, x.zero ? 1 : middle, y.zero + j);
    return done;
  };
  const bool long_ones = t.stretches * 8 <= t.n;  // no branch foresees where short ones end
  for (int i = 0, j = 0; j < t.n;) {
    i += j == t.stretch[i].to;
    const Stretch& run = t.stretch[i];
    if (long_ones && j == run.from) j += load_eight(run, j);
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

// Whether scores can come from products of integers.
inline bool integer_products(const Side& k, int dim) {
#if defined(__AVX2__)
  const bool integers = k.codec == Codec::int8 || k.codec == Codec::int4 || k.codec == Codec::int2;
  return integers && !k.channel && dim / groups_of(k, dim) % kWords == 0;
#else
  return false;
#endif
}

// Row r of `rows` queries into x: rounded to 8 bits where x.by_integers says so, which a row that
// is not finite takes back.
void place_packed_query(const Side& k, float* row, int r, int rows, int dim, PackedScratch& x) {
  if (x.by_integers) {
    int16_t rounded[kMaxDim];
    const float one = x.q_scale[r] = round_row(row, dim, 127, rounded);
    x.by_integers = one == one;
    for (int c = 0; c < dim && x.by_integers; ++c) {
      row[c] = rounded[c] * one;
#if defined(__AVX512VNNI__)
      const int at = k.tiles ? (c / 4 * rows + r) * 4 + c % 4 : byte_query_at(r, c, dim);
      x.rounded[at] = int8_t(rounded[c]);
#else
      x.rounded[(c / kWords * rows + r) * kWords + c % kWords] = rounded[c];
#endif
    }
  }
  if (k.tiles)
    for (int c = 0; c < dim; ++c) x.q[c * rows + r] = row[c];
  else
    with_codec(k.codec, [&](auto codec) {
      each_vector<decltype(codec)::value>(
          dim, [&](int v, int c) { store(x.q + (v * rows + r) * Vec::width, load(row + c)); });
    });
  const int groups = groups_of(k, dim), size = dim / groups;
  for (int g = 0; g < groups; ++g) {
    float total = 0;
    for (int c = 0; c < size; ++c) total += row[g * size + c];
    x.sums[r * groups + g] = total;
  }
}

// f(codec) for the codecs whose keys may lie in tiles.
template <class F>
void with_integers(Codec c, const F& f) {
  if (c == Codec::int8) return f(std::integral_constant<Codec, Codec::int8>{});
  if (c == Codec::int4) return f(std::integral_constant<Codec, Codec::int4>{});
  f(std::integral_constant<Codec, Codec::int2>{});
}

// score_channels for keys in tiles.
void score_channel_tiles(const Side& k, const Rows& t, int hkv, int rows, int dim, PackedScratch& x,
                         float* s, Ahead& ahead) {
  channel_runs(k, t, hkv, [&](int from, int to, int64_t at) {
    load_channels(k, at, dim, x.scales);
    for (int r = 0; r < rows; ++r) x.add[r] = 0;
    for (int c = 0; c < dim; ++c)
      for (int r = 0; r < rows; ++r) {
        const float q = x.q[c * rows + r];
        x.tmp[c * rows + r] = q * x.scales.scale[c];
        x.add[r] += q * x.scales.zero[c];
      }
    with_integers(k.codec, [&](auto codec) {
      column_scores<FloatColumns<decltype(codec)::value>>(
          x.tmp, rows, 1, dim, k, t, from, to, x.dots, ahead, [&](int first, int count) {
            for (int i = 0; i < count; ++i)
              for (int j = from; j < to; ++j)
                s[(first + i) * kTile + j] = x.dots[i * kDots + j - from] + x.add[first + i];
          });
    });
  });
}

// Channel geometry: the queries take up the scales of every run of keys.
void score_channels(const Side& k, const Rows& t, int hkv, int rows, int dim, PackedScratch& x,
                    float* s, Ahead& ahead) {
  channel_runs(k, t, hkv, [&](int from, int to, int64_t at) {
    load_channels(k, at, dim, x.scales);
    with_codec(k.codec, [&](auto codec) {
      constexpr Codec C = decltype(codec)::value;
      for (int r = 0; r < rows; ++r) {
        Vec bias = zero();
        each_vector<C>(dim, [&](int v, int c) {
          const int i = (v * rows + r) * Vec::width;
          const Vec q = load(x.q + i);
          store(x.tmp + i, q * load(x.scales.scale + c));
          bias = fma(q, load(x.scales.zero + c), bias);
        });
        x.add[r] = sum(bias);
      }
      packed_scores<FloatDots<C>>(x.tmp, rows, 1, units_of<C>(dim), t.k + from, to - from, x.dots,
                                  ahead, [&](int first, int count) {
                                    for (int i = 0; i < count; ++i)
                                      for (int j = from; j < to; ++j)
                                        s[(first + i) * kTile + j] =
                                            x.dots[i * kDots + j - from] + x.add[first + i];
                                  });
    });
  });
}

// Rows [first, first + count) of s from their products, which lie by group, `apart` rows from the
// next: the groups' scales and zeros, and `one`, what a unit of a query stands for.
void scale_scores(const PackedScratch& x, int first, int count, int apart, int n, int groups,
                  const float* one, float* s) {
  const auto rows = [&](auto known) {
    const int all = decltype(known)::value ? decltype(known)::value : groups;
    for (int i = 0; i < count; ++i) {
      const float *dots = x.dots + i * kDots, *sums = x.sums + (first + i) * all;
      const Vec unit = splat(one ? one[first + i] : 1.f);
      for (int j = 0; j < n; j += Vec::width) {
        Vec y = zero(), bias = zero();
        for (int g = 0; g < all; ++g) {
          y = fma(load(dots + g * apart * kDots + j), load(x.scales.scale + g * kTile + j), y);
          bias = fma(splat(sums[g]), load(x.scales.zero + g * kTile + j), bias);
        }
        store(s + (first + i) * kTile + j, fma(y, unit, bias));
      }
    }
  };
  if (groups == 1) return rows(Int<1>{});
  if (groups == 2) return rows(Int<2>{});
  rows(Int<0>{});
}

// score_packed for keys in tiles and of token geometry, whose scales are loaded.
void score_tiles(const Side& k, const Rows& t, int rows, int groups, int dim, PackedScratch& x,
                 float* s, Ahead& ahead) {
  with_integers(k.codec, [&](auto codec) {
    constexpr Codec C = decltype(codec)::value;
    const auto finish = [&](const float* one) {
      return [&, one](int first, int count) {
        scale_scores(x, first, count, count, t.n, groups, one, s);
      };
    };
#if defined(__AVX512VNNI__)
    if (x.by_integers)
      return column_scores<ByteColumns<C>>(reinterpret_cast<const FourBytes*>(x.rounded), rows,
                                           groups, dim / groups, k, t, 0, t.n, x.dots, ahead,
                                           finish(x.q_scale));
#endif
    column_scores<FloatColumns<C>>(x.q, rows, groups, dim / groups, k, t, 0, t.n, x.dots, ahead,
                                   finish(nullptr));
  });
}

// s[r * kTile + j] = q_r . k_j; x holds the `rows` queries of `dim` elements and their sums.
void score_packed(const Side& k, const Rows& t, int hkv, int rows, int dim, PackedScratch& x,
                  float* s, Ahead& ahead) {
  if (k.channel && k.tiles) return score_channel_tiles(k, t, hkv, rows, dim, x, s, ahead);
  if (k.channel) return score_channels(k, t, hkv, rows, dim, x, s, ahead);
  const int groups = groups_of(k, dim), size = dim / groups;
  load_scales(k, t, hkv, groups, x.scales);
  if (k.tiles) return score_tiles(k, t, rows, groups, dim, x, s, ahead);
  const float* one = x.by_integers ? x.q_scale : nullptr;
  const auto finish = [&](int first, int count) {
    scale_scores(x, first, count, count, t.n, groups, one, s);
  };
  with_codec(k.codec, [&](auto codec) {
    constexpr Codec C = decltype(codec)::value;
#if defined(__AVX512VNNI__)
    if constexpr (C == Codec::int8 || C == Codec::int4 || C == Codec::int2)
      if (x.by_integers) {
        for (int r = 0; r < rows; r += kByteRows) {
          byte_dots<C>(x.rounded + r * dim, groups, size, t.k, t.n, x.dots, ahead);
          const int count = rows - r < kByteRows ? rows - r : kByteRows;
          scale_scores(x, r, count, kByteRows, t.n, groups, one, s);
        }
        return;
      }
#elif defined(__AVX2__)
    using Words = WordDots<C>;
    if constexpr (C == Codec::int8 || C == Codec::int4 || C == Codec::int2)
      if (x.by_integers)
        return packed_scores<Words>(x.rounded, rows, groups, size / (Words::kVecs * kWords), t.k, t.n,
                                    x.dots, ahead, finish);
#endif
    packed_scores<FloatDots<C>>(x.q, rows, groups, units_of<C>(size), t.k, t.n, x.dots, ahead,
                                finish);
  });
}

// out = out * keep + sum_j w_j v_j for rows of weights [row][kTile], zero behind n.
void add_packed(const Side& v, const Rows& t, int hkv, const float* w, int rows, int dim,
                const float* keep, PackedScratch& x, float* out, int os, Ahead& ahead) {
  if (v.channel) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < dim; ++c) out[r * os + c] *= keep[r];
    for (int r = 0; r < rows; ++r) x.none[r] = 0;
    channel_runs(v, t, hkv, [&](int from, int to, int64_t at) {
      load_channels(v, at, dim, x.scales);
      for (int i = 0; i < rows * dim; ++i) x.tmp[i] = 0;
      with_codec(v.codec, [&](auto codec) {
        constexpr Codec C = decltype(codec)::value;
        packed_values<C>(w + from, rows, t.v + from, to - from, 0, units_of<C>(dim), x.none, x.none,
                         x.tmp, dim, ahead);
      });
      for (int r = 0; r < rows; ++r) {
        float total = 0;
        for (int j = from; j < to; ++j) total += w[r * kTile + j];
        for (int c = 0; c < dim; ++c)
          out[r * os + c] += x.tmp[r * dim + c] * x.scales.scale[c] + total * x.scales.zero[c];
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
      packed_values<C>(x.w, rows, t.v, t.n, g * units, (g + 1) * units, keep, x.add, out, os,
                       ahead);
    });
  }
}

}  // namespace
}  // namespace tokops
