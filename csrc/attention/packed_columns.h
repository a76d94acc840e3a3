// Scores of integer codes that lie in tiles of sixteen tokens (kvcache/kv_relayout.h): a column of
// a tile is four bytes of every token, a lane each, so that the sums of sixteen keys come out side
// by side and nothing is added across a vector. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"
#include "attention/packed_dot8.h"

namespace tokops {
namespace {

constexpr int kColumnKeys = 16;                        // of a tile
constexpr int kColumnVecs = kColumnKeys / Vec::width;  // of a column
constexpr int kColumnPieces = kTile / kColumnKeys + 1;

inline Ints load_ints(const uint8_t* p) {
  Ints x;
  std::memcpy(&x.v, p, sizeof(x.v));
  return x;
}

template <Codec C>
constexpr int kTopCode = C == Codec::int8   ? 255
                         : C == Codec::int4 ? 15
                                            : 3;

// How a column meets queries: in kSteps products, each beside one four-byte element of a query.
// This way codes become floats, a dimension a step.
template <Codec C>
struct FloatColumns {
  using Query = float;
  using Sum = Vec;
  static constexpr int kSteps = 4 * kCodesOfByte<C>, kDims = kSteps;  // of a column
  template <int S>
  static Vec codes(Ints column) {
    constexpr int kShift = S % 4 * 8 + S / 4 * (8 / kCodesOfByte<C>);
    const Ints x = kShift ? shift<kShift>(column) : column;
    return floats(kShift + 8 / kCodesOfByte<C> == 32 ? x : mask(x, kTopCode<C>));
  }
  static Vec query(float q) { return splat(q); }
  static Vec add(Vec sum, Vec codes, Vec query) { return fma(codes, query, sum); }
  static Vec sums(Vec sum) { return sum; }
};

#if defined(TOKOPS_BYTE_PRODUCTS)
struct FourBytes {
  int8_t x[4];
};
// This way four codes meet four bytes of a query.
template <Codec C>
struct ByteColumns {
  using Query = FourBytes;
  using Sum = Ints;
  static constexpr int kSteps = kCodesOfByte<C>, kDims = 4 * kSteps;  // of a column
  template <int S>
  static Ints codes(Ints column) {
    if constexpr (C == Codec::int8) return column;
    return bits_of_bytes(column, S * (8 / kCodesOfByte<C>), kTopCode<C>);
  }
  static Ints query(FourBytes q) {
    int32_t word;
    std::memcpy(&word, &q, 4);
    return splat_word(word);
  }
  static Ints add(Ints sum, Ints codes, Ints query) { return add_bytes(sum, codes, query); }
  static Vec sums(Ints sum) { return floats(sum); }
};
#endif

// What a run of keys covers of one tile: its keys from `skip` on, `count` of them, the first of
// which is `key` of the run.
struct Piece {
  const uint8_t* tile;
  int skip, count, key;
};

// The pieces of keys [from, to), which a selection has not picked. Returns how many.
inline int pieces_of(const Side& k, const Rows& t, int from, int to, Piece* out) {
  int n = 0;
  for (int i = 0, j = from; j < to;) {
    while (j >= t.stretch[i].to) ++i;
    const Stretch& run = t.stretch[i];
    const int skip = (run.slot + j - run.from) % kColumnKeys;
    int count = (run.to < to ? run.to : to) - j;
    if (count > kColumnKeys - skip) count = kColumnKeys - skip;
    out[n++] = {t.k[j] - skip * k.p, skip, count, j - from};
    j += count;
  }
  return n;
}

template <class F, int... S>
inline void each_step(const F& f, std::integer_sequence<int, S...>) {
  (f(Int<S>{}), ...);
}

// packed_dots (packed_rows.h) of R rows and J pieces. Queries lie element by element, `rows` of
// them side by side.
template <class P, int R, int J>
__attribute__((noinline)) void column_dots(const typename P::Query* q, int rows, int groups,
                                           int columns, const Piece* pieces, float* dots,
                                           Ahead& ahead) {
  constexpr int kVecs = J * kColumnVecs;  // of a column of all pieces
  const uint8_t* at[J];
  for (int j = 0; j < J; ++j) at[j] = pieces[j].tile;
  for (int g = 0; g < groups; ++g, dots += R * kDots) {
    typename P::Sum sum[R][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] = typename P::Sum{};
    for (int c = 0; c < columns; ++c) {
      ahead.lines(J);
      Ints x[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        x[v] = load_ints(at[v / kColumnVecs]);
        at[v / kColumnVecs] += sizeof(Ints);
      }
      each_step(
          [&](auto step) {
            constexpr int S = decltype(step)::value;
            decltype(P::query(*q)) y[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) y[r] = P::query(q[r]);
            q += rows;
#pragma GCC unroll 8
            for (int v = 0; v < kVecs; ++v) {
              const auto codes = P::template codes<S>(x[v]);
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) sum[r][v] = P::add(sum[r][v], codes, y[r]);
            }
          },
          std::make_integer_sequence<int, P::kSteps>{});
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < J; ++j) {
        float* to = dots + r * kDots + pieces[j].key;
        float all[kColumnKeys];
        const bool whole = pieces[j].count == kColumnKeys;
#pragma GCC unroll 8
        for (int v = 0; v < kColumnVecs; ++v)
          store((whole ? to : all) + v * Vec::width, P::sums(sum[r][j * kColumnVecs + v]));
        if (!whole) std::memcpy(to, all + pieces[j].skip, pieces[j].count * sizeof(float));
      }
  }
}

// The same for any number of rows, groups of `dims` dimensions and the keys [from, to) of t:
// finish(first, R) after every R of them.
template <class P, class F>
inline void column_scores(const typename P::Query* q, int rows, int groups, int dims, const Side& k,
                          const Rows& t, int from, int to, float* dots, Ahead& ahead,
                          const F& finish) {
  Piece pieces[kColumnPieces];
  const int n = pieces_of(k, t, from, to, pieces), columns = dims / P::kDims;
  in_blocks<4>(rows, [&](int r, auto count) {
    constexpr int R = decltype(count)::value, J = Vec::width == 16 ? 4 : R <= 2 ? 2 : 1;
    int i = 0;
    for (; i + J <= n; i += J)
      column_dots<P, R, J>(q + r, rows, groups, columns, pieces + i, dots, ahead);
    for (; i < n; ++i) column_dots<P, R, 1>(q + r, rows, groups, columns, pieces + i, dots, ahead);
    finish(r, R);
  });
}

}  // namespace
}  // namespace tokops
