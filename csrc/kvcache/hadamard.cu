#include <cmath>

#include "common/cuda.cuh"
#include "kvcache/hadamard.h"

namespace tokops {
namespace {

constexpr int kThreads = 128;  // a warp per row, element lane + 32 i in x[i]
constexpr int kSlices = kMaxHadamardDim / 32;

template <class T>
__global__ void hadamard_kernel(Hadamard p, float scale) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  const T* from = reinterpret_cast<const T*>(hadamard_row(p, row));
  T* to = reinterpret_cast<T*>(p.out) + row * p.D;
  float x[kSlices];
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    const int d = lane + 32 * i;
    x[i] = d < p.D ? to_float(from[d]) : 0.f;
    if (p.signs && !p.inverse && d < p.D) x[i] *= p.signs[d];
  }
  for (int step = 1; step < p.n && step < 32; step *= 2)
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const float other = __shfl_xor_sync(kFullWarp, x[i], step);
      x[i] = lane & step ? other - x[i] : x[i] + other;
    }
#pragma unroll
  for (int step = 1; step < kSlices; step *= 2) {
    if (32 * step >= p.n) break;
#pragma unroll
    for (int i = 0; i < kSlices; ++i)
      if (!(i & step)) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
  }
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    const int d = lane + 32 * i;
    if (d >= p.D) continue;
    const float y = x[i] * scale;
    to[d] = from_float<T>(p.signs && p.inverse ? y * p.signs[d] : y);
  }
}

}  // namespace

void hadamard(const Hadamard& p, const Queue& q) {
  const float scale = 1.f / std::sqrt(float(p.n));
  const int64_t blocks = (p.rows + kThreads / 32 - 1) / (kThreads / 32);
  dispatch<float, __nv_bfloat16, __half>(p.dtype, "hadamard", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(hadamard_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), 0, q, p, scale);
  });
}

}  // namespace tokops
