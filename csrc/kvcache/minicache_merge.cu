#include "common/cuda.cuh"
#include "kvcache/minicache_merge.h"

namespace tokops {
namespace {

constexpr int kWarps = 4;
constexpr float kPi = 3.14159265358979f;

struct Weights {
  float x, y, distance;
  float least;  // a mix shorter than this is rounding
};

// What the mix takes of each vector, from their norms and dot product.
__device__ Weights weights_of(const MinicacheMerge& p, float nx, float ny, float dot) {
  if (!(nx + ny < INFINITY)) return {NAN, NAN, NAN, 0};
  // A zero vector has no direction and loses nothing.
  if (nx == 0.f || ny == 0.f)
    return {nx == 0.f ? 0.f : 1.f / nx, ny == 0.f ? 0.f : 1.f / ny, 0.f, 0.f};
  const float ix = 1.f / (nx > p.eps ? nx : p.eps), iy = 1.f / (ny > p.eps ? ny : p.eps);
  float c = dot * ix * iy;
  c = c < -p.cos_limit ? -p.cos_limit : c > p.cos_limit ? p.cos_limit : c;
  const float angle = acosf(c), sine = sinf(angle);
  float a = 1.f - p.t, b = p.t;
  if (!(sine < kChordSine)) a = sinf(a * angle) / sine, b = sinf(b * angle) / sine;
  return {a * ix, b * iy, angle / kPi, kNoMix * ny * iy};
}

// Saturates what is finite.
__device__ __half to_norm(float n) {
  return __float2half_rn(n < INFINITY && n > kLargestHalf ? kLargestHalf : n);
}

// One warp per row; the two vectors come from memory once and are read again from the first cache.
template <class T>
__global__ void minicache_merge_kernel(MinicacheMerge p) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const T* x = static_cast<const T*>(p.prev) + row_offset(p, p.prev_at, row);
  const T* y = static_cast<const T*>(p.cur) + row_offset(p, p.cur_at, row);
  float xx = 0.f, yy = 0.f, xy = 0.f;
  for (int64_t c = lane; c < p.D; c += 32) {
    const float a = to_float(x[c]), b = to_float(y[c]);
    xx = fmaf(a, a, xx), yy = fmaf(b, b, yy), xy = fmaf(a, b, xy);
  }
  const float nx = sqrtf(warp_sum(xx)), ny = sqrtf(warp_sum(yy));
  Weights w = weights_of(p, nx, ny, warp_sum(xy));
  if (lane == 0) {
    static_cast<__half*>(p.norm_prev)[row] = to_norm(nx);
    static_cast<__half*>(p.norm_cur)[row] = to_norm(ny);
    p.distance[row] = w.distance;
  }
  float square = 0.f;
  for (int64_t c = lane; c < p.D; c += 32) {
    const float mix = fmaf(w.x, to_float(x[c]), w.y * to_float(y[c]));
    square = fmaf(mix, mix, square);
  }
  float length = sqrtf(warp_sum(square));
  if (length < w.least) {  // opposite: the later vector alone
    w.x = 0.f, w.y = 1.f;
    length = ny;
  }
  const float scale = length == 0.f ? 0.f : 1.f / length;
  T* e = static_cast<T*>(p.e) + row * p.D;
  for (int64_t c = lane; c < p.D; c += 32)
    e[c] = from_float<T>(fmaf(w.x, to_float(x[c]), w.y * to_float(y[c])) * scale);
}

}  // namespace

void minicache_merge(const MinicacheMerge& p, const Queue& q) {
  dispatch<float, __nv_bfloat16, __half>(p.dtype, "minicache_merge", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(minicache_merge_kernel<T>, dim3(unsigned((p.rows + kWarps - 1) / kWarps)),
           dim3(kWarps * 32), 0, q, p);
  });
}

}  // namespace tokops
