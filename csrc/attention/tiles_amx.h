// The two inner products of attention on AMX tiles, for bf16 rows named by pointers and D a
// multiple of 32. Sums are float32; weights enter as a bf16 pair (value, remainder), so that only
// the inputs' own rounding is seen.
#pragma once
#include "attention/tiles.h"

namespace tokops {
namespace {

#if defined(__AMX_BF16__)
inline constexpr int kAmxKeys = 64;  // keys of one call

// Sixteen rows of 64 bytes in every tile register, for as long as it lives.
struct AmxTiles {
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  AmxTiles() {
    alignas(64) const Config config;
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
};

// Where the pair of dimensions (c, c + 1) of query row r stands: [block of 16 rows][32
// dimensions][pair][row].
inline int amx_query_at(int r, int c, int d) {
  return (((r / 16) * (d / 32) + c / 32) * 256 + c % 32 / 2 * 16 + r % 16) * 2 + c % 2;
}

// out[row * stride + key] = in[key * 16 + row] for 16 keys and the first `rows` of 16 rows.
inline void transpose16(const float* in, float* out, int stride, int rows) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    const __m512 x = _mm512_load_ps(in + i * 16), y = _mm512_load_ps(in + (i + 1) * 16);
    a[i] = _mm512_unpacklo_ps(x, y);
    a[i + 1] = _mm512_unpackhi_ps(x, y);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + 2 + j], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + 2 + j], 0xee);
    }
  for (int j = 0; j < 4;
       ++j) {  // b[4 i + j] holds rows j, 4 + j, 8 + j, 12 + j of keys 4 i .. 4 i + 3
    const __m512 lo01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88),
                 hi01 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 lo23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 hi23 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    a[j] = _mm512_shuffle_f32x4(lo01, lo23, 0x88);
    a[8 + j] = _mm512_shuffle_f32x4(lo01, lo23, 0xdd);
    a[4 + j] = _mm512_shuffle_f32x4(hi01, hi23, 0x88);
    a[12 + j] = _mm512_shuffle_f32x4(hi01, hi23, 0xdd);
  }
  for (int r = 0; r < 16 && r < rows; ++r) _mm512_storeu_ps(out + r * stride, a[r]);
}

// Sixteen rows as a base and a stride: as they stand if evenly spaced, else copied into `room`.
struct AmxRows {
  const bf16* base;
  int64_t stride;
};
inline AmxRows amx_rows(const bf16* const* k, int d, bf16* room) {
  const int64_t step = k[1] - k[0];
  bool even = true;
  for (int i = 2; i < 16; ++i) even &= k[i] - k[i - 1] == step;
  if (even) return {k[0], step};
  for (int i = 0; i < 16; ++i)
    for (int c = 0; c < d; c += 32)
      _mm512_storeu_si512(room + i * d + c, _mm512_loadu_si512(k[i] + c));
  return {room, d};
}

// s[r * stride + j] = q_r . k_j for `rows` query rows and 64 keys; k names 64 readable rows.
inline void amx_dots(const bf16* q, int rows, int d, const bf16* const* k, bf16* room, float* s,
                     int stride, Ahead& ahead) {
  AmxRows x[4];
  for (int g = 0; g < 4; ++g) x[g] = amx_rows(k + g * 16, d, room + g * 16 * d);
  alignas(64) float c[4][256];
  for (int r = 0; r < rows; r += 16, q += 16 * d) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < d; i += 32) {
      ahead.call(6);
      _tile_loadd(7, q + i * 16, 64);
      _tile_loadd(4, x[0].base + i, x[0].stride * 2);
      _tile_dpbf16ps(0, 4, 7);
      _tile_loadd(5, x[1].base + i, x[1].stride * 2);
      _tile_dpbf16ps(1, 5, 7);
      _tile_loadd(6, x[2].base + i, x[2].stride * 2);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(4, x[3].base + i, x[3].stride * 2);
      _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    for (int g = 0; g < 4; ++g) {
      ahead.call(5);
      transpose16(c[g], s + r * stride + g * 16, stride, rows - r);
    }
  }
}

// Pairs of value rows interleaved, as the second factor of a tile product wants them:
// out[column block of 16][pair of keys][column][key of the pair]; rows from n on are zero.
inline void amx_pair_values(const bf16* const* v, int n, int d, bf16* out, Ahead& ahead) {
  alignas(64) uint16_t low[32], high[32];
  for (int i = 0; i < 16; ++i) {
    low[2 * i] = i, low[2 * i + 1] = 32 + i;
    high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
  }
  const __m512i lo = _mm512_load_si512(low), hi = _mm512_load_si512(high),
                none = _mm512_setzero_si512();
  for (int j = 0; j < kAmxKeys; j += 2) {
    ahead.call(1);
    for (int c = 0; c < d; c += 32) {
      const __m512i a = j < n ? _mm512_loadu_si512(v[j] + c) : none;
      const __m512i b = j + 1 < n ? _mm512_loadu_si512(v[j + 1] + c) : none;
      bf16* to = out + c / 16 * (kAmxKeys * 16) + j * 16;
      _mm512_store_si512(to, _mm512_permutex2var_epi16(a, lo, b));
      _mm512_store_si512(to + kAmxKeys * 16, _mm512_permutex2var_epi16(a, hi, b));
    }
  }
}

// out = out * keep + p . v for at most 8 rows of 64 weights (zero where there is no key) and paired
// values.
inline void amx_weighted(const float* p, int ps, int rows, const bf16* v, int d, const float* keep,
                         float* out, int os, Ahead& ahead) {
  alignas(64) __m256i w[2][16][2];  // [32 keys][value rows 0..7, remainder rows 8..15][16 keys]
  for (int r = 0; r < 8; ++r)
    for (int j = 0; j < kAmxKeys; j += 16) {
      const __m512 x = r < rows ? _mm512_loadu_ps(p + r * ps + j) : _mm512_setzero_ps();
      const __m256i high = (__m256i)_mm512_cvtneps_pbh(x);
      const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      w[j / 32][r][j / 16 % 2] = high;
      w[j / 32][r + 8][j / 16 % 2] = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, back));
    }
  _tile_loadd(4, w[0], 64);
  _tile_loadd(5, w[1], 64);
  alignas(64) float c[2][256];
  for (int i = 0; i < d; i += 32) {
    ahead.call(5);
    const bf16* first = v + i / 16 * (kAmxKeys * 16);
    const bf16* second = first + kAmxKeys * 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, first, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, second, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, first + kAmxKeys * 8, 64);
    _tile_dpbf16ps(0, 5, 6);
    _tile_loadd(7, second + kAmxKeys * 8, 64);
    _tile_dpbf16ps(1, 5, 7);
    ahead.call(4);
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    for (int r = 0; r < rows; ++r)
      for (int h = 0; h < 2; ++h) {
        float* o = out + r * os + i + h * 16;
        store(o, fma(load(o), splat(keep[r]), load(c[h] + r * 16) + load(c[h] + (r + 8) * 16)));
      }
  }
}
#else
struct AmxTiles {};
#endif

}  // namespace
}  // namespace tokops
