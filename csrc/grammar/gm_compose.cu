#include "common/cuda.cuh"
#include "grammar/gm_compose.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;

// One block per 256 packs of a row; a thread copies one.
template <int kVec>
__global__ void __launch_bounds__(kThreads) gm_compose_kernel(GmCompose p) {
  using Words = Pack<int32_t, kVec>;
  const int64_t b = blockIdx.y, packs = p.W / kVec;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  bool walked = is_walked(p, b);
  if (walked) {
    bool left = false;
    for (int64_t j = threadIdx.x; j < p.parts; j += kThreads) left |= p.left[b * p.parts + j] != 0;
    walked = !__syncthreads_or(left);
  }
  if (i >= packs) return;
  int32_t fill;
  const int32_t* const from = mask_source(p, b, walked, &fill);
  Words words;
  if (from) {
    words = reinterpret_cast<const Words*>(from)[i];
  } else {
#pragma unroll
    for (int j = 0; j < kVec; ++j) words.at[j] = fill;
  }
  reinterpret_cast<Words*>(p.out + b * p.W)[i] = words;
}

bool aligned(const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }

}  // namespace

void gm_compose(const GmCompose& p, const Queue& q) {
  constexpr int64_t kMostRows = 65535;  // of a grid's y
  const bool wide = p.W % 4 == 0 && aligned(p.pool) && aligned(p.host_mask) &&
                    aligned(p.eos_mask) && aligned(p.out);
  const int64_t packs = wide ? p.W / 4 : p.W;
  for (int64_t b = 0; b < p.B; b += kMostRows) {
    GmCompose part = p;
    part.B = p.B - b < kMostRows ? p.B - b : kMostRows;
    part.state += b;
    part.host_mask += b * p.W;
    if (p.left) part.left += b * p.parts;
    part.out += b * p.W;
    launch(wide ? gm_compose_kernel<4> : gm_compose_kernel<1>,
           dim3(unsigned((packs + kThreads - 1) / kThreads), unsigned(part.B)), dim3(kThreads), 0,
           q, part);
  }
}

}  // namespace tokops
