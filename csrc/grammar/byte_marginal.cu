#include "common/cuda.cuh"
#include "grammar/byte_marginal.h"

namespace tokops {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int64_t kLong = 1024;  // a run of more tokens is summed by the whole block

template <class T>
struct SortedRow {
  const T* logp;
  const int32_t* order;
  int64_t V;
  __device__ float operator()(int64_t i) const {
    const int64_t id = order[i];
    return id >= 0 && id < V ? sane_logit(to_float(logp[id])) : -INFINITY;
  }
};

// Mass of tokens begin..end by `step` threads in a row, of which this one is at `lane`; fold(x,
// largest) gives them all the largest or the sum of theirs.
template <class Row, class Fold>
__device__ float run_mass(const Row& x, Run run, int lane, int step, const Fold& fold) {
  float high = -INFINITY, own = 0;
  for (int64_t i = run.low + lane; i < run.high; i += step) {
    const float a = x(i);
    high = a > high ? a : high;
  }
  const float top = fold(high, true);
  if (!(top > -INFINITY)) return -INFINITY;
  for (int64_t i = run.low + lane; i < run.high; i += step)
    own += exact::exp_nonpositive(x(i) - top);
  return bin_mass(top, fold(own, false));
}

// One block per row. Where the run of each byte begins is searched for; then warps take one short
// run each, and the whole block one long run after the other.
template <class T>
__global__ void __launch_bounds__(kThreads) byte_marginal_kernel(ByteMarginal p) {
  __shared__ int64_t begins[kByteBins + 1];
  __shared__ float warps[kWarps];
  const int64_t row = blockIdx.x;
  const int32_t depth = p.depth[row];
  const Run all = run_of_row(p, row);
  const SortedRow<T> x{static_cast<const T*>(p.logp) + row * p.stride, p.order, p.V};
  for (int place = threadIdx.x; place <= kByteBins; place += kThreads) {
    int64_t from = all.low, to = all.high > all.low ? all.high : all.low;
    while (from < to) {
      const int64_t half = (from + to) / 2;
      if (place_of(p, half, depth) < place)
        from = half + 1;
      else
        to = half;
    }
    begins[place] = from;
  }
  __syncthreads();
  float* out = p.out + row * kByteBins;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int place = warp; place < kByteBins; place += kWarps) {
    const Run run{begins[place], begins[place + 1]};
    if (run.high - run.low > kLong) continue;
    const float mass = run_mass(x, run, lane, 32, [](float v, bool largest) {
      return largest ? warp_max(v) : warp_sum(v);
    });
    if (lane == 0) out[bin_of(place)] = mass;
  }
  for (int place = 0; place < kByteBins; ++place) {
    const Run run{begins[place], begins[place + 1]};
    if (run.high - run.low <= kLong) continue;
    const float mass = run_mass(x, run, int(threadIdx.x), kThreads, [&](float v, bool largest) {
      v = largest ? warp_max(v) : warp_sum(v);
      __syncthreads();
      if (lane == 0) warps[warp] = v;
      __syncthreads();
      return largest ? warp_max(warps[lane]) : warp_sum(warps[lane]);
    });
    if (threadIdx.x == 0) out[bin_of(place)] = mass;
  }
}

}  // namespace

void byte_marginal(const ByteMarginal& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "byte_marginal", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(byte_marginal_kernel<T>, dim3(unsigned(p.B)), dim3(kThreads), 0, q, p);
  });
}

}  // namespace tokops
