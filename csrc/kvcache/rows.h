// Rows of packed pools on the CPU: elements of a row to floats and back. For .isa.cpp files.
#pragma once
#include "common/simd.h"
#include "kvcache/codec.h"

namespace tokops {
namespace {

// ---- Floats of a row. ----

template <class T>
inline void load_floats(const T* x, int n, float* out) {
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) store(out + i, load(x + i));
  for (; i < n; ++i) out[i] = to_float(x[i]);
}
inline void load_floats(DType d, const void* x, int n, float* out) {
  if (d == DType::f32)
    load_floats(static_cast<const float*>(x), n, out);
  else if (d == DType::bf16)
    load_floats(static_cast<const bf16*>(x), n, out);
  else
    load_floats(static_cast<const f16*>(x), n, out);
}

template <class T>
inline void store_floats(const float* x, int n, T* out) {
  for (int i = 0; i < n; ++i) from_float(x[i], out + i);
}
inline void store_floats(DType d, const float* x, int n, void* out) {
  if (d == DType::f32)
    store_floats(x, n, static_cast<float*>(out));
  else if (d == DType::bf16)
    store_floats(x, n, static_cast<bf16*>(out));
  else
    store_floats(x, n, static_cast<f16*>(out));
}

inline void clamp_inputs(float* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = clamp_input(x[i]);
}

struct Range {
  float lo, hi;
};
inline Range range_of(const float* x, int n) {
  Range r{x[0], x[0]};
  int i = 0;
  if (n >= Vec::width) {
    Vec lo = load(x), hi = lo;
    for (i = Vec::width; i + Vec::width <= n; i += Vec::width) {
      lo = min(load(x + i), lo);
      hi = max(load(x + i), hi);
    }
    r = {-largest(zero() - lo), largest(hi)};
  }
  for (; i < n; ++i) r = {x[i] < r.lo ? x[i] : r.lo, x[i] > r.hi ? x[i] : r.hi};
  return r;
}

// ---- Codes of a row, one a byte, and their packed bytes. ----

inline void pack_row(int bits, const uint8_t* codes, int d, uint8_t* row) {
  if (bits == 8) {
    memcpy(row, codes, size_t(d));
  } else if (bits == 4) {
    for (; d > 0; d -= 32, codes += 32, row += 16)
      for (int j = 0; j < 16; ++j) row[j] = uint8_t(codes[j] | codes[j + 16] << 4);
  } else {
    for (; d > 0; d -= 32, codes += 32, row += 8)
      for (int j = 0; j < 8; ++j)
        row[j] = uint8_t(codes[j] | codes[j + 8] << 2 | codes[j + 16] << 4 | codes[j + 24] << 6);
  }
}
inline void unpack_row(int bits, const uint8_t* row, int d, uint8_t* codes) {
  if (bits == 8) {
    memcpy(codes, row, size_t(d));
  } else if (bits == 4) {
    for (; d > 0; d -= 32, codes += 32, row += 16)
      for (int j = 0; j < 16; ++j) {
        codes[j] = row[j] & 15;
        codes[j + 16] = row[j] >> 4;
      }
  } else {
    for (; d > 0; d -= 32, codes += 32, row += 8)
      for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 4; ++i) codes[j + 8 * i] = row[j] >> 2 * i & 3;
  }
}

// The grid of every element of a row.
struct RowGrid {
  float scale[kMaxHeadDim], zero[kMaxHeadDim];
  void fill(int from, int to, const Grid& g) {
    for (int i = from; i < to; ++i) {
      scale[i] = g.scale;
      zero[i] = g.zero;
    }
  }
};
inline void load_grid(const PackedPool& p, int64_t page, int64_t h, int64_t slot, RowGrid* g) {
  const int64_t row = scale_row(p, slot);
  if (p.geometry == Geometry::channel) {
    for (int d = 0; d < p.D; ++d) {
      const Grid x = grid_at(p, page, h, row, d);
      g->scale[d] = x.scale;
      g->zero[d] = x.zero;
    }
    return;
  }
  for (int d = 0; d < p.D; d += p.group)
    g->fill(d, d + p.group, grid_at(p, page, h, row, d / p.group));
}

// y = (x - zero) / scale within [low, high], plus `add`.
inline void to_grid(const float* x, const float* scale, const float* zero, int n, float low,
                    float high, float add, float* y) {
  int i = 0;
  for (; i + Vec::width <= n; i += Vec::width) {
    const Vec t = (load(x + i) - load(zero + i)) / load(scale + i);
    store(y + i, min(max(t, splat(low)), splat(high)) + splat(add));
  }
  for (; i < n; ++i) {
    float t = (x[i] - zero[i]) / scale[i];
    t = t > low ? t : low;
    y[i] = (t < high ? t : high) + add;
  }
}
template <CodecKind Kind>
inline void fp8_codes(const float* y, int n, uint8_t* codes) {
  for (int i = 0; i < n; ++i) codes[i] = fp8_code(Kind, y[i]);
}

// Writes the codes of clamped elements x [D] on a given grid: code_for, row by row.
inline void encode_row(const PackedPool& p, const float* x, const RowGrid& g, char* row) {
  static constexpr float no_zero[kMaxHeadDim] = {};
  uint8_t codes[kMaxHeadDim];
  float y[kMaxHeadDim];
  if (is_fp8(p.kind)) {
    const float most = largest_fp8(p.kind);
    to_grid(x, g.scale, no_zero, p.D, -most, most, -0.f, y);  // + -0 keeps the sign of a zero
    if (p.kind == CodecKind::fp8_e4m3)
      fp8_codes<CodecKind::fp8_e4m3>(y, p.D, codes);
    else
      fp8_codes<CodecKind::fp8_e5m2>(y, p.D, codes);
  } else {
    if (is_symmetric(p))
      to_grid(x, g.scale, no_zero, p.D, -127, 127, kRoundToInt + 128, y);
    else
      to_grid(x, g.scale, g.zero, p.D, 0, float(top_code(p.kind)), kRoundToInt, y);
    for (int d = 0; d < p.D; ++d) codes[d] = uint8_t(bits_of_float(y[d]));
  }
  pack_row(bits_of(p.kind), codes, p.D, reinterpret_cast<uint8_t*>(row));
}

// Writes elements x [D], clamped in place, to a slot of a pool of token or head geometry or a full
// one, and the scales that belong to that slot alone.
inline void quantise_row(const PackedPool& p, int64_t page, int64_t h, int64_t slot, float* x) {
  char* row = row_of(p, page, h, slot);
  if (p.kind == CodecKind::full) return store_floats(p.dtype, x, p.D, row);
  clamp_inputs(x, p.D);
  RowGrid g;
  for (int d = 0; d < p.D; d += p.group) {
    const int64_t at = scale_row(p, slot), column = d / p.group;
    Grid grid;
    if (p.geometry == Geometry::token) {
      const Range r = range_of(x + d, p.group);
      grid = grid_of(p.kind, is_symmetric(p), p.scale_dtype, r.lo, r.hi);
      store_grid(p, page, h, at, column, grid);
    } else {
      grid = grid_at(p, page, h, at, column);
    }
    g.fill(d, d + p.group, grid);
  }
  encode_row(p, x, g, row);
}

// Elements [D] of a slot.
inline void dequantise_row(const PackedPool& p, int64_t page, int64_t h, int64_t slot, float* x) {
  const char* row = row_of(p, page, h, slot);
  if (p.kind == CodecKind::full) return load_floats(p.dtype, row, p.D, x);
  uint8_t codes[kMaxHeadDim];
  RowGrid g;
  unpack_row(bits_of(p.kind), reinterpret_cast<const uint8_t*>(row), p.D, codes);
  load_grid(p, page, h, slot, &g);
  if (is_fp8(p.kind)) {
    for (int d = 0; d < p.D; ++d) x[d] = code_value(p.kind, codes[d], Grid{g.scale[d], g.zero[d]});
  } else {
    for (int d = 0; d < p.D; ++d) x[d] = float(codes[d]) * g.scale[d] + g.zero[d];
  }
}

}  // namespace
}  // namespace tokops
