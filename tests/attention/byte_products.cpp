// Scores and sums over values of packed tiles against float64, in the way that the compiler's flags
// choose. Prints the first case that is off; test_byte_products.py builds and runs it.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "attention/packed_tile.h"

using namespace tokops;

namespace {

std::mt19937 random_bits(0);
float uniform(float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(random_bits);
}

struct Case {
  Codec codec;
  int dim, group, rows, n;
  bool zero, round;
};

// The code of dimension c of a row; byte j of 16 holds j and j + 16, of 8 holds j + 8 i.
int code_at(const uint8_t* row, Codec codec, int c) {
  if (codec == Codec::int8) return row[c];
  if (codec == Codec::int4) return row[c / 32 * 16 + c % 16] >> (c % 32 / 16 * 4) & 15;
  return row[c / 32 * 8 + c % 8] >> (c % 32 / 8 * 2) & 3;
}

// Keys or values of one page.
struct Pages {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scale, zero;
  Side side{};

  explicit Pages(const Case& x) {
    const int bits = x.codec == Codec::int8   ? 8
                     : x.codec == Codec::int4 ? 4
                                              : 2,
              groups = x.dim / x.group;
    const int bytes = x.dim * bits / 8;
    codes.resize(size_t(kTile + 8) * bytes);
    for (uint8_t& one : codes) one = uint8_t(random_bits());
    for (int i = 0; i < (kTile + 8) * groups; ++i) {
      f16 s, z;
      from_float(uniform(0.001f, 0.02f), &s);
      from_float(uniform(-2, 0.1f), &z);
      scale.push_back(s.bits);
      zero.push_back(z.bits);
    }
    side.data = codes.data();
    side.p = bytes;
    side.scale = scale.data();
    side.zero = x.zero ? zero.data() : nullptr;
    side.s_p = groups;
    side.s_g = 1;
    side.codec = x.codec;
    side.group = x.group;
  }

  double value(const Case& x, int j, int c) const {
    const int at = j * (x.dim / x.group) + c / x.group;
    const double one = to_float(f16{scale[at]}), low = x.zero ? to_float(f16{zero[at]})
                                                       : x.codec == Codec::int8 ? -128 * one
                                                                                : 0;
    return one * code_at(codes.data() + j * side.p, x.codec, c) + low;
  }
};

Rows rows_of(const Side& k, const Side& v, int n) {
  Rows t{};
  t.n = n;
  t.stretches = 1;
  t.stretch[0] = {0, n, 0, 0};
  for (int j = 0; j < kTile + 4; ++j) {
    t.pos[std::min(j, kTile - 1)] = j;
    t.k[j] = static_cast<const uint8_t*>(k.data) + j * k.p;
    t.v[j] = static_cast<const uint8_t*>(v.data) + j * v.p;
  }
  return t;
}

bool off(const char* what, const Case& x, int r, int at, double got, double want, double limit) {
  if (std::abs(got - want) <= limit) return false;
  std::printf(
      "%s: codec %d dim %d group %d rows %d keys %d zero %d round %d: [%d, %d] is %.9g for %.9g, "
      "limit %.2g\n",
      what, int(x.codec), x.dim, x.group, x.rows, x.n, x.zero, x.round, r, at, got, want, limit);
  return true;
}

bool scores_are_off(const Case& x, PackedScratch& scratch) {
  const Pages pages(x);
  const Rows t = rows_of(pages.side, pages.side, x.n);
  std::vector<float> q(size_t(x.rows) * x.dim);
  for (float& one : q) one = uniform(-1, 1);
  scratch.query_bytes = query_bytes(pages.side, x.rows, x.dim, x.round);
  std::vector<float> placed = q;
  for (int r = 0; r < x.rows; ++r)
    place_packed_query(pages.side, &placed[size_t(r) * x.dim], r, x.rows, x.dim, scratch);
  std::vector<float> s(size_t(x.rows) * kTile);
  Ahead ahead{};
  score_packed(pages.side, t, 0, x.rows, x.dim, scratch, s.data(), ahead);
  for (int r = 0; r < x.rows; ++r)
    for (int j = 0; j < x.n; ++j) {
      double want = 0, size = 0;
      for (int c = 0; c < x.dim; ++c) {
        want += q[r * x.dim + c] * pages.value(x, j, c);
        size += std::abs(pages.value(x, j, c)) +
                256 * to_float(f16{pages.scale[j * (x.dim / x.group) + c / x.group]});
      }
      if (off("score", x, r, j, s[r * kTile + j], want, size * (x.round ? 1.01 / 254 : 1e-6)))
        return true;
    }
  return false;
}

bool values_are_off(const Case& x, PackedScratch& scratch) {
  const Pages pages(x);
  const Rows t = rows_of(pages.side, pages.side, x.n);
  std::vector<float> w(size_t(x.rows) * kTile), out(size_t(x.rows) * x.dim), keep(x.rows);
  for (int r = 0; r < x.rows; ++r) {
    keep[r] = uniform(0, 1);
    for (int j = 0; j < x.n; ++j) w[r * kTile + j] = std::exp(uniform(-9, 0));
    for (int c = 0; c < x.dim; ++c) out[r * x.dim + c] = uniform(-1, 1);
  }
  const std::vector<float> before = out;
  Ahead ahead{};
  add_packed(pages.side, t, 0, w.data(), x.rows, x.dim, keep.data(), x.round, scratch, out.data(),
             x.dim, ahead);
  for (int r = 0; r < x.rows; ++r)
    for (int c = 0; c < x.dim; ++c) {
      double want = double(before[r * x.dim + c]) * keep[r], size = 1, most = 0;
      for (int j = 0; j < x.n; ++j) {
        const double one = to_float(f16{pages.scale[j * (x.dim / x.group) + c / x.group]});
        want += w[r * kTile + j] * pages.value(x, j, c);
        size += w[r * kTile + j] * (std::abs(pages.value(x, j, c)) + 256 * one);
        most = std::max(most, w[r * kTile + j] * one);
      }
      // Weights as two bytes: half a unit of 1 / 65535 of the largest, times a code less its
      // middle, of every key.
      const double rounded = x.round ? most * x.n * 128 / 65535 / 2 : 0;
      if (off("value", x, r, c, out[r * x.dim + c], want, size * 1e-6 + rounded)) return true;
    }
  return false;
}

}  // namespace

int main() {
  static PackedScratch scratch;
  int cases = 0;
  for (const Codec codec : {Codec::int8, Codec::int4, Codec::int2})
    for (const int dim : {32, 64, 96, 128, 256})
      for (const int group : {32, 64, dim}) {
        if (dim % group) continue;
        for (int rows = 1; rows <= 9; ++rows)
          for (const int n : {1, 3, 8, 30, kTile - 1, kTile})
            for (const bool round : {false, true}) {
              const Case x{codec, dim, group, rows, n, codec != Codec::int8 || rows % 2 == 0,
                           round};
              if (scores_are_off(x, scratch) || values_are_off(x, scratch)) return 1;
              ++cases;
            }
      }
#if defined(TOKOPS_BYTE_PRODUCTS)
  std::printf("%d cases by products of bytes, %d a vector\n", cases, kByteWidth);
#else
  std::printf("%d cases by other products\n", cases);
#endif
  return 0;
}
