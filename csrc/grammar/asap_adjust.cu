#include "common/cuda.cuh"
#include "grammar/asap_adjust.h"

namespace tokops {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

// Largest or sum over the block, in every thread.
__device__ float block_fold(float own, float* warps, bool largest) {
  own = largest ? warp_max(own) : warp_sum(own);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  const float other = warps[threadIdx.x % kWarps];
  return largest ? warp_max(other) : warp_sum(other);
}

// ln of the sum of e^x over x(0) .. x(V - 1) by the whole block.
template <class F>
__device__ float logsumexp(int64_t v, float* warps, const F& x) {
  float high = -INFINITY, own = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < v; i += kThreads) {
    const float a = x(i);
    high = a > high ? a : high;
  }
  const float top = block_fold(high, warps, true);
  if (!(top > -INFINITY)) return -INFINITY;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < v; i += kThreads) own += exact::exp_nonpositive(x(i) - top);
  return top + exact::log_positive(block_fold(own, warps, false));
}

// One block per row: its logits are read for the largest, for the sum, and for the output.
template <class T>
__global__ void __launch_bounds__(kThreads) asap_adjust_kernel(AsapAdjust p) {
  __shared__ float warps[kWarps];
  const int64_t row = blockIdx.x;
  const T* from = static_cast<const T*>(p.logits) + row * p.stride;
  const float lse = logsumexp(p.V, warps, [&](int64_t i) { return sane_logit(to_float(from[i])); });
  const float* theta = theta_of_row(p, row);
  const int32_t* bits = bits_of_row(p.mask, row);
  float* out = p.out + row * p.V;
  for (int64_t i = threadIdx.x; i < p.V; i += kThreads) {
    const float logp = sane_sum(sane_logit(to_float(from[i])), -lse);
    const float moved = theta ? sane_sum(logp, theta[i]) : logp;
    out[i] = !bits || is_allowed(p.mask, bits, i) ? moved : -INFINITY;
  }
}

// One block per node.
__global__ void __launch_bounds__(kThreads) node_mass_kernel(NodeMass p) {
  __shared__ float warps[kWarps];
  const int64_t n = blockIdx.x;
  const float *logp = p.logp + n * p.logp_stride, *theta = p.theta + n * p.theta_stride;
  const float mass =
      logsumexp(p.V, warps, [&](int64_t i) { return sane_logit(logp[i] + theta[i]); });
  if (threadIdx.x == 0) p.out[n] = mass;
}

}  // namespace

void asap_adjust(const AsapAdjust& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "asap_adjust", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(asap_adjust_kernel<T>, dim3(unsigned(p.B)), dim3(kThreads), 0, q, p);
  });
}

void node_mass(const NodeMass& p, const Queue& q) {
  launch(node_mass_kernel, dim3(unsigned(p.N)), dim3(kThreads), 0, q, p);
}

}  // namespace tokops
