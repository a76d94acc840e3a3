// Scores and values of one tile of packed keys, scales and zeros included. For .isa.cpp files.
#pragma once
#include "attention/packed_columns.h"
#include "attention/packed_scales.h"

namespace tokops {
namespace {

// Queries lie as packed_dots wants them.
struct PackedScratch {
  TileScales scales;
  alignas(64) float w[kMaxRows * kTile], q[kMaxRows * kMaxDim], tmp[kMaxRows * kMaxDim];
  float sums[kMaxRows * kMaxGroups];               // of the queries by group, [row][group]
  alignas(64) float dots[4 * kMaxGroups * kDots];  // of up to four rows, [group][row][key]
  float add[kMaxRows], none[kMaxRows];
  int query_bytes;  // of an element in `rounded`, beside q_scale; 0: they do not hold the queries
#if defined(TOKOPS_BYTE_PRODUCTS)
  alignas(64) int8_t rounded[kMaxRows * kMaxDim * kExactBytes];
  alignas(64) uint8_t weights[2 * kMaxRows * kTile];
  float unit[kMaxRows];  // of the weights
#else
  alignas(64) int16_t rounded[kMaxRows * kMaxDim];
#endif
  float q_scale[kMaxRows];
};

constexpr bool integers(Codec c) {
  return c == Codec::int8 || c == Codec::int4 || c == Codec::int2;
}

// Whether codes of a side can meet integers.
inline bool integer_products(const Side& x, int dim) {
  return integers(x.codec) && !x.channel && dim / groups_of(x, dim) % 32 == 0;
}

// PackedScratch::query_bytes for `rows` queries, to be rounded to 8 bits if `round`.
inline int query_bytes(const Side& k, [[maybe_unused]] int rows, int dim, bool round) {
#if defined(TOKOPS_BYTE_PRODUCTS)
  if (!round) return integer_products(k, dim) && !k.tiles && rows >= kFewest ? kExactBytes : 0;
#endif
#if defined(__AVX2__)
  if (round && integer_products(k, dim)) return 1;
#endif
  return 0;
}

// Row r of `rows` queries into x: as integers where x.query_bytes says so, which a row that is not
// finite takes back.
void place_packed_query(const Side& k, float* row, int r, int rows, int dim, PackedScratch& x) {
  if (x.query_bytes) {
    int32_t rounded[kMaxDim];
#if defined(TOKOPS_BYTE_PRODUCTS)
    const float limit = byte_limit(x.query_bytes);
#else
    const float limit = 127;
#endif
    const float one = x.q_scale[r] = round_row(row, dim, limit, rounded);
    if (one != one) {
      x.query_bytes = 0;
    } else {
      for (int c = 0; c < dim; ++c) row[c] = rounded[c] * one;
#if defined(TOKOPS_BYTE_PRODUCTS)
      if (k.tiles)
        for (int c = 0; c < dim; ++c)
          x.rounded[(c / 4 * rows + r) * 4 + c % 4] = int8_t(rounded[c]);
      else
        for (int c = 0; c < dim; c += Vec::width)
          put_bytes(rounded + c, x.query_bytes,
                    x.rounded + byte_query_at(r, c, dim, x.query_bytes));
#else
      for (int c = 0; c < dim; ++c)
        x.rounded[(c / kWords * rows + r) * kWords + c % kWords] = int16_t(rounded[c]);
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
      packed_scores<FloatDots<C>>(x.tmp, 0, rows, 1, units_of<C>(dim), t.k + from, to - from,
                                  x.dots, ahead, [&](int first, int count) {
                                    for (int i = 0; i < count; ++i)
                                      for (int j = from; j < to; ++j)
                                        s[(first + i) * kTile + j] =
                                            x.dots[i * kDots + j - from] + x.add[first + i];
                                  });
    });
  });
}

// Rows [first, first + count) of s from their products: the groups' zeros, and `one`, what a unit
// of a query stands for. Products lie by group, `apart` rows from the next, and take their scales;
// or, where that is 0, are those of all groups with the scales.
void scale_scores(const PackedScratch& x, int first, int count, int apart, int n, int groups,
                  const float* one, float* s) {
  const auto rows = [&](auto known) {
    const int all = decltype(known)::value ? decltype(known)::value : groups;
    for (int i = 0; i < count; ++i) {
      const float *dots = x.dots + i * kDots, *sums = x.sums + (first + i) * all;
      const Vec unit = splat(one ? one[first + i] : 1.f);
      for (int j = 0; j < n; j += Vec::width) {
        Vec y = apart ? zero() : load(dots + j), bias = zero();
        for (int g = 0; g < all; ++g) {
          if (apart)
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
#if defined(TOKOPS_BYTE_PRODUCTS)
    if (x.query_bytes)
      return column_scores<ByteColumns<C>>(reinterpret_cast<const FourBytes*>(x.rounded), rows,
                                           groups, dim / groups, k, t, 0, t.n, x.dots, ahead,
                                           finish(x.q_scale));
#endif
    column_scores<FloatColumns<C>>(x.q, rows, groups, dim / groups, k, t, 0, t.n, x.dots, ahead,
                                   finish(nullptr));
  });
}

#if defined(TOKOPS_BYTE_PRODUCTS)
// Scores by products of bytes, as many rows as gain by them. Returns how many.
template <Codec C, int Bytes>
int score_bytes(const Rows& t, int rows, int groups, int dim, PackedScratch& x, float* s,
                Ahead& ahead) {
  const int rest = rows % kByteRows, gain = Bytes == 1 || rest >= kFewest ? rows : rows - rest;
  in_blocks<byte_vectors(Bytes)>((gain + kByteRows - 1) / kByteRows, [&](int i, auto count) {
    constexpr int N = decltype(count)::value;
    const auto multiply =
        dim / groups == 64 ? byte_dots<C, Bytes, N, 64> : byte_dots<C, Bytes, N, 0>;
    const int r = i * kByteRows, left = gain - r, n = N * kByteRows < left ? N * kByteRows : left;
    multiply(x.rounded + r * dim * Bytes, groups, dim / groups, x.scales.scale, t.k, t.n, x.dots,
             ahead);
    scale_scores(x, r, n, 0, t.n, groups, x.q_scale, s);
  });
  return gain;
}
#endif

// s[r * kTile + j] = q_r . k_j; x holds the `rows` queries of `dim` elements and their sums.
void score_packed(const Side& k, const Rows& t, int hkv, int rows, int dim, PackedScratch& x,
                  float* s, Ahead& ahead) {
  if (k.channel && k.tiles) return score_channel_tiles(k, t, hkv, rows, dim, x, s, ahead);
  if (k.channel) return score_channels(k, t, hkv, rows, dim, x, s, ahead);
  const int groups = groups_of(k, dim), size = dim / groups;
  load_scales(k, t, hkv, groups, x.scales);
  if (k.tiles) return score_tiles(k, t, rows, groups, dim, x, s, ahead);
  with_codec(k.codec, [&](auto codec) {
    constexpr Codec C = decltype(codec)::value;
    int done = 0;
#if defined(TOKOPS_BYTE_PRODUCTS)
    if constexpr (integers(C))
      if (x.query_bytes)
        done = x.query_bytes == 1 ? score_bytes<C, 1>(t, rows, groups, dim, x, s, ahead)
                                  : score_bytes<C, kExactBytes>(t, rows, groups, dim, x, s, ahead);
#elif defined(__AVX2__)
    using Words = WordDots<C>;
    if constexpr (integers(C))
      if (x.query_bytes)
        return packed_scores<Words>(x.rounded, 0, rows, groups, size / (Words::kVecs * kWords), t.k,
                                    t.n, x.dots, ahead, [&](int first, int count) {
                                      scale_scores(x, first, count, count, t.n, groups, x.q_scale,
                                                   s);
                                    });
#endif
    packed_scores<FloatDots<C>>(x.q, done, rows, groups, units_of<C>(size), t.k, t.n, x.dots, ahead,
                                [&](int first, int count) {
                                  scale_scores(x, first, count, count, t.n, groups, nullptr, s);
                                });
  });
}

#if defined(TOKOPS_BYTE_PRODUCTS)
// add_packed's x.add, x.weights and x.unit of group g of values of integer codes. Returns false
// where bytes can't say what the weights with their scales are.
template <Codec C>
bool weights_as_bytes(const float* w, int rows, int n, int g, PackedScratch& x) {
  const float *scales = x.scales.scale + g * kTile, *zeros = x.scales.zero + g * kTile;
  for (int r = 0; r < rows; ++r) {
    Vec add = zero(), total = zero(), top = zero(), least = zero();
    for (int j = 0; j < n; j += Vec::width) {
      const Vec one = load(w + r * kTile + j), y = one * load(scales + j);
      add = fma(one, load(zeros + j), add);
      total = total + y;
      top = max(top, y);
      least = min(least, y);
      store(x.w + r * kTile + j, y);
    }
    const float all = sum(total), most = largest(top);
    if (!(all < INFINITY) || largest(zero() - least) > 0 || (all > 0 && most < 1e-30f))
      return false;
    x.add[r] = sum(add) + kCodeMiddle<C> * all;
    x.unit[r] = round_weights(x.w + r * kTile, n, most, x.weights + 2 * r * kTile);
  }
  return true;
}
#endif

// out = out * keep + sum_j w_j v_j for rows of weights [row][kTile], zero behind n. `narrow`: the
// result will be bf16.
void add_packed(const Side& v, const Rows& t, int hkv, const float* w, int rows, int dim,
                const float* keep, [[maybe_unused]] bool narrow, PackedScratch& x, float* out,
                int os, Ahead& ahead) {
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
  const int groups = groups_of(v, dim), size = dim / groups;
  load_scales(v, t, hkv, groups, x.scales);
  with_codec(v.codec, [&](auto codec) {
    constexpr Codec C = decltype(codec)::value;
    for (int g = 0; g < groups; ++g) {
#if defined(TOKOPS_BYTE_PRODUCTS)
      if constexpr (integers(C))
        if (narrow && size % 32 == 0 && weights_as_bytes<C>(w, rows, t.n, g, x)) {
          byte_values<C>(x.weights, x.unit, rows, t.v, t.n, g * size / 32, (g + 1) * size / 32,
                         keep, x.add, out, os, ahead);
          continue;
        }
#endif
      for (int r = 0; r < rows; ++r) {
        Vec total = zero();
        for (int j = 0; j < t.n; j += Vec::width) {
          const Vec y = load(w + r * kTile + j);
          total = fma(y, load(x.scales.zero + g * kTile + j), total);
          store(x.w + r * kTile + j, y * load(x.scales.scale + g * kTile + j));
        }
        x.add[r] = sum(total);
      }
      const int units = units_of<C>(size);
      packed_values<C>(x.w, rows, t.v, t.n, g * units, (g + 1) * units, keep, x.add, out, os,
                       ahead);
    }
  });
}

}  // namespace
}  // namespace tokops
