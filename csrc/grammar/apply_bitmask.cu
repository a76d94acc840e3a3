#include "common/cuda.cuh"
#include "grammar/apply_bitmask.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 2048, kLeastParts = 4;

// One block per part of a row of the mask; a thread changes kVec tokens at a time, which are read
// only where some of them are allowed and some are not.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) apply_bitmask_kernel(ApplyBitmask p) {
  constexpr uint32_t kWhole = (1u << kVec) - 1;
  const int64_t row = masked_row(p, blockIdx.x);
  if (row < 0) return;
  T* const x = static_cast<T*>(p.logits) + row * p.stride;
  const int32_t* bits = bits_of_row(p.mask, blockIdx.x);
  const T value = from_float<T>(p.value);
  const auto changed = [&](T old) {
    return p.add ? from_float<T>(to_float(old) + p.value) : value;
  };
  const int64_t step = int64_t(gridDim.y) * kThreads * kVec;
  for (int64_t t = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * kVec; t < p.V; t += step) {
    const uint32_t allowed = word_of(p.mask, bits, t / 32) >> (t % 32) & kWhole;
    if (allowed == kWhole) continue;
    if (t + kVec <= p.V) {
      Pack<T, kVec> pack{};
      if (p.add || allowed) pack = *reinterpret_cast<const Pack<T, kVec>*>(x + t);
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        if (!(allowed >> j & 1)) pack.at[j] = changed(pack.at[j]);
      *reinterpret_cast<Pack<T, kVec>*>(x + t) = pack;
    } else {
      for (int j = 0; t + j < p.V; ++j)
        if (!(allowed >> j & 1)) x[t + j] = changed(x[t + j]);
    }
  }
}

}  // namespace

void apply_bitmask(const ApplyBitmask& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "apply_bitmask_", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kVec = 16 / int(sizeof(T));
    const bool aligned =
        reinterpret_cast<uintptr_t>(p.logits) % 16 == 0 && p.stride * int64_t(sizeof(T)) % 16 == 0;
    const int64_t per_block = kThreads * (aligned ? kVec : 1);
    const int64_t parts = (p.V + per_block - 1) / per_block;
    const int64_t most = kBlocks / p.count > kLeastParts ? kBlocks / p.count : kLeastParts;
    launch(aligned ? apply_bitmask_kernel<T, kVec> : apply_bitmask_kernel<T, 1>,
           dim3(unsigned(p.count), unsigned(parts < most ? parts : most)), dim3(kThreads), 0, q, p);
  });
}

}  // namespace tokops
