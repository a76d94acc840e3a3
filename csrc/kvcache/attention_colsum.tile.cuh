// Products of a tile of rows with a tile of keys, shared by the two passes of attention_colsum.
#pragma once
#include "common/ptx.cuh"
#include "kvcache/attention_colsum.h"
#include "kvcache/mass.cuh"

namespace tokops {
namespace colsum {

constexpr int kRows = 64, kKeys = 64;  // of a tile
constexpr int kWarps = kRows / 16, kThreads = kWarps * 32;

template <class T>
constexpr bool kMma = !std::is_same_v<T, float>;

// Elements between the rows of a tile: whole steps of the product, and an odd number of 16-byte
// pieces, so that rows lie in different banks.
template <class T>
__host__ __device__ inline int row_stride(int d) {
  constexpr int kStep = kMma<T> ? 16 : 4, kPiece = 16 / int(sizeof(T));
  const int pieces = (d + kStep - 1) / kStep * kStep / kPiece;
  return (pieces | 1) * kPiece;
}

// One (sequence, KV head): where its vectors stand and what sees what. A row that does not exist
// has position -1.
template <class T>
struct Head {
  const AttentionColsum& p;
  int b, hkv, group, rows, past, start;

  __device__ Head(const AttentionColsum& params, int i) : p(params) {
    b = i / p.Hkv, hkv = i % p.Hkv;
    group = p.Hq / p.Hkv;
    rows = (p.T - p.first_row) * group;
    past = p.L - p.T + p.first_row;
    start = p.starts ? p.starts[b] : 0;
  }
  __device__ int position(int r) const { return r < rows ? past + r / group : -1; }
  __device__ int row_at(int pos) const { return pos > past ? (pos - past) * group : 0; }
  __device__ float* lse(int r) const {
    return p.lse + (int64_t(b) * p.T + p.first_row + r / group) * p.Hq + hkv * group + r % group;
  }
  __device__ const T* query(int r) const {
    if (r >= rows) return nullptr;
    return static_cast<const T*>(p.q) + b * p.q_b + (p.first_row + r / group) * p.q_t +
           (hkv * group + r % group) * p.q_h;
  }
  __device__ const T* key(int j) const {
    if (j >= p.L) return nullptr;
    return static_cast<const T*>(p.k) + b * p.k_b + j * p.k_l + hkv * p.k_h;
  }
};

// Copies vectors into a tile; zeros where there is none and behind their last element.
template <class T, class At>
__device__ void load_tile(const AttentionColsum& p, const At& at, T* tile) {
  constexpr int kPiece = 16 / int(sizeof(T));
  const int stride = row_stride<T>(p.D), pieces = stride / kPiece;
  for (int i = threadIdx.x; i < kRows * pieces; i += kThreads) {
    const int row = i / pieces, c = i % pieces * kPiece;
    const T* from = at(row);
    Pack<T, kPiece> x;
    if (from && p.aligned && c < p.D) {
      x = *reinterpret_cast<const Pack<T, kPiece>*>(from + c);
    } else {
#pragma unroll
      for (int e = 0; e < kPiece; ++e) x.at[e] = from && c + e < p.D ? from[c + e] : T(0.f);
    }
    *reinterpret_cast<Pack<T, kPiece>*>(tile + row * stride + c) = x;
  }
}

// Scores of 16 rows with 64 keys over a warp. With g = lane / 4, t = lane % 4 the lane holds in
// at[n][2 i + j] row g + 8 i, key 8 n + 2 t + j.
struct Scores {
  float at[kKeys / 8][4];
};

template <class T>
__device__ Scores products(const T* rows, const T* keys, int d) {
  Scores s{};
  const int stride = row_stride<T>(d), lane = threadIdx.x % 32;
  if constexpr (kMma<T>) {
    const T* a_row = rows + (lane % 16) * stride + lane / 16 * 8;
    const T* b_row = keys + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
    for (int c = 0; c < d; c += 16) {
      uint32_t a[4];
      ptx::ldmatrix_x4(a, a_row + c);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, b_row + 16 * n * stride + c);
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        ptx::mma_16816<T>(s.at[2 * n], a, low);
        ptx::mma_16816<T>(s.at[2 * n + 1], a, high);
      }
    }
  } else {
    using Four = Pack<float, 4>;
    const float* row = rows + lane / 4 * stride;
    const float* key = keys + lane % 4 * 2 * stride;
#pragma unroll 1
    for (int c = 0; c < d; c += 4) {
      const Four q0 = *reinterpret_cast<const Four*>(row + c);
      const Four q1 = *reinterpret_cast<const Four*>(row + 8 * stride + c);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const Four k = *reinterpret_cast<const Four*>(key + (8 * n + j) * stride + c);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s.at[n][j] = fmaf(q0.at[e], k.at[e], s.at[n][j]);
            s.at[n][2 + j] = fmaf(q1.at[e], k.at[e], s.at[n][2 + j]);
          }
        }
    }
  }
  return s;
}

// Key of at[n][e] within the tile, row of it within the warp's rows.
__device__ __forceinline__ int key_of(int n, int e) { return 8 * n + threadIdx.x % 4 * 2 + e % 2; }
__device__ __forceinline__ int row_of(int e) { return int(threadIdx.x) % 32 / 4 + e / 2 * 8; }

}  // namespace colsum
}  // namespace tokops
