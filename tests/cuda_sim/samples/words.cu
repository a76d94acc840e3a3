// Small kernels that use one word each: tests/cuda_sim/test_simulator.py knows what they must give.
// Compiled by nvcc they give the same on a GPU, the broken ones apart.
#include <string>

#include "common/ptx.cuh"

namespace tokops {
namespace {

// out[i] = the thread on the other end's number. Without the barrier some read before it is
// written.
template <bool kBarrier>
__global__ void mirror(int* out) {
  __shared__ int slot[128];
  slot[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  out[blockIdx.x * 128 + threadIdx.x] = slot[127 - threadIdx.x];
}

// Two rounds through one buffer. Without the second barrier a fast warp overwrites what a slow one
// has not read.
template <bool kBarrier>
__global__ void mirror_twice(int* out) {
  __shared__ int slot[128];
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    slot[threadIdx.x] = round;
    __syncthreads();
    sum += slot[127 - threadIdx.x];
    if (kBarrier) __syncthreads();
  }
  out[blockIdx.x * 128 + threadIdx.x] = sum;
}

// The same within a warp.
template <bool kBarrier>
__global__ void mirror_warp(int* out) {
  __shared__ int slot[128];
  slot[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncwarp();
  out[blockIdx.x * 128 + threadIdx.x] = slot[threadIdx.x ^ 31];
}

// out [9, 32]: what lane i gets.
__global__ void shuffles(int* out) {
  const int lane = threadIdx.x, v = 100 + lane;
  int* o = out + lane;
  o[0 * 32] = __shfl_sync(kFullWarp, v, 5);
  o[1 * 32] = __shfl_sync(kFullWarp, v, lane + 3, 8);
  o[2 * 32] = __shfl_up_sync(kFullWarp, v, 2);
  o[3 * 32] = __shfl_up_sync(kFullWarp, v, 3, 8);
  o[4 * 32] = __shfl_down_sync(kFullWarp, v, 5);
  o[5 * 32] = __shfl_down_sync(kFullWarp, v, 3, 16);
  o[6 * 32] = __shfl_xor_sync(kFullWarp, v, 6);
  o[7 * 32] = __shfl_xor_sync(kFullWarp, v, 12, 8);
  const unsigned half =
      lane < 16 ? 0xffffu : 0xffff0000u;  // two meetings at a time, the upper one twice
  int last = __shfl_sync(half, v, 15, 16);
  if (lane >= 16) last += __shfl_xor_sync(half, v, 1, 16);
  o[8 * 32] = last;
}

// out [8, 32].
__global__ void votes(unsigned* out) {
  const int lane = threadIdx.x;
  unsigned* o = out + lane;
  o[0 * 32] = __ballot_sync(kFullWarp, lane % 3 == 0);
  o[1 * 32] = __any_sync(kFullWarp, lane == 40) + 2 * __any_sync(kFullWarp, lane == 31);
  o[2 * 32] = __all_sync(kFullWarp, lane < 31) + 2 * __all_sync(kFullWarp, lane < 32);
  o[3 * 32] = __reduce_add_sync(kFullWarp, unsigned(lane));
  o[4 * 32] =
      __reduce_max_sync(kFullWarp, lane - 16) + 100 * __reduce_min_sync(kFullWarp, lane + 7);
  o[5 * 32] = __reduce_or_sync(kFullWarp, 1u << lane) ^ __reduce_and_sync(kFullWarp, lane | 64u);
  o[6 * 32] = __match_any_sync(kFullWarp, lane / 8);
  o[7 * 32] = unsigned(warp_sum(float(lane))) + 1000 * warp_max<8>(lane);
}

// out [3, blocks]: count, and, or over a block, half of whose threads have ended before.
__global__ void block_votes(int* out) {
  if (threadIdx.x >= 64) return;
  const int count = __syncthreads_count(threadIdx.x < 10);
  const int all = __syncthreads_and(threadIdx.x < 64) + 2 * __syncthreads_and(threadIdx.x);
  const int any = __syncthreads_or(threadIdx.x == 63) + 2 * __syncthreads_or(0);
  if (threadIdx.x) return;
  out[blockIdx.x] = count;
  out[gridDim.x + blockIdx.x] = all;
  out[2 * gridDim.x + blockIdx.x] = any;
}

// d [16, 8] = a [16, 16] b [16, 8]; b row-major [16, 8] (kTrans) or given as its transpose [8, 16].
template <class T, bool kTrans, bool kWait>
__global__ void product(const T* a, const T* b, float* d) {
  __shared__ __align__(16) T tile[256];
  TOKOPS_SHARED_DYNAMIC(T, other);
  const int lane = threadIdx.x, i = lane / 8, r = lane % 8;
  ptx::cp_async(tile + 8 * lane, a + 8 * lane);
  ptx::cp_async_commit();
  ptx::cp_async<8>(other + 4 * lane, b + 4 * lane);
  ptx::cp_async_commit();
  if (kWait) {
    ptx::cp_async_wait<0>();
  } else {
    ptx::cp_async_wait<1>();  // b is still on its way
  }
  __syncwarp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix_x4(fa, tile + 16 * (8 * (i % 2) + r) + 8 * (i / 2));
  if (kTrans) {
    ptx::ldmatrix_x4_trans(fb, other + 8 * (8 * (i % 2) + r));
  } else {
    ptx::ldmatrix_x4(fb, other + 16 * r + 8 * (i % 2));
  }
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  ptx::mma_16816<T>(sum, fa, {fb[0], fb[1]});
  for (int j = 0; j < 4; ++j) d[8 * (lane / 4 + 8 * (j / 2)) + 2 * (lane % 4) + j % 2] = sum[j];
}

// out[i] = in[i] for i < n, 0 beyond: copies that are not real read nothing.
__global__ void zero_fill(const float* in, float* out, int n) {
  TOKOPS_SHARED_DYNAMIC(float, row);
  ptx::cp_async<4>(row + threadIdx.x, in + threadIdx.x, int(threadIdx.x) < n);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  out[threadIdx.x] = row[threadIdx.x];
}

// A copy into a buffer that others still read, for want of a barrier.
template <bool kBarrier>
__global__ void refill(const float* in, float* out) {
  TOKOPS_SHARED_DYNAMIC(float, row);
  row[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  const float mine = row[127 - threadIdx.x];
  if (kBarrier) __syncthreads();
  ptx::cp_async<4>(row + threadIdx.x, in + threadIdx.x);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  out[threadIdx.x] = mine + row[threadIdx.x];
}

// Sums `in` over the whole grid: the last block to finish adds the blocks' parts up.
__global__ void last_block(const float* in, float* part, unsigned* done, float* out) {
  __shared__ float warps[4];
  __shared__ bool last;
  const float sum = warp_sum(in[blockIdx.x * 128 + threadIdx.x]);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    part[blockIdx.x] = warps[0] + warps[1] + warps[2] + warps[3];
    __threadfence();
    last = atomicAdd(done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x) return;
  float total = 0.f;
  for (unsigned b = 0; b < gridDim.x; ++b) total += part[b];
  *out = total;
}

// out [6]: what many threads did to one word.
__global__ void atomics(int* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(out + 0, i);
  atomicMax(out + 1, i);
  atomicMin(out + 2, i - 5);
  atomicOr(out + 3, 1 << i % 20);
  atomicAdd(reinterpret_cast<float*>(out + 4), 0.5f);
  for (int seen = out[5], found; (found = atomicCAS(out + 5, seen, seen + 2)) != seen;)
    seen = found;
}

// Every block reads what its neighbour may or may not have written.
__global__ void chain(int* out) { out[blockIdx.x + 1] = out[blockIdx.x] + 1; }

__global__ void unwritten(float* out) {
  __shared__ float fixed[32];
  TOKOPS_SHARED_DYNAMIC(float, dynamic);
  out[2 * (blockIdx.x * 32 + threadIdx.x)] = fixed[threadIdx.x];
  out[2 * (blockIdx.x * 32 + threadIdx.x) + 1] = dynamic[threadIdx.x];
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 0.f;
}

__global__ void diverge(int kind) {
  if (kind == 0) {  // two barriers that are not one
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (kind == 1) {  // some wait for their warp, some for the block
    if (threadIdx.x < 16) __syncwarp();
    __syncthreads();
  } else if (kind == 2) {  // the lanes of a warp use different words
    if (threadIdx.x % 2) {
      __syncwarp();
    } else {
      __ballot_sync(kFullWarp, 1);
    }
  } else if (kind == 3) {
    __shfl_sync(1u, 0, 0);
  } else if (kind == 4) {
    __trap();
  }
}

// Reads or writes past an end; only the sanitizer sees it.
__global__ void overrun(int* out, int kind, int by) {
  __shared__ int fixed[40];
  TOKOPS_SHARED_DYNAMIC(int, dynamic);
  int* p = kind == 0 ? fixed : kind == 1 ? dynamic : out;
  p[threadIdx.x + by] = 1;
}

template <class... P, class... A>
const char* result_of(void (*kernel)(P...), dim3 grid, int block, size_t shared, A... args) {
  static std::string message;
  try {
    launch(kernel, grid, block, shared, Queue{}, args...);
    return nullptr;
  } catch (const std::exception& e) {
    message = e.what();
    return message.c_str();
  }
}

}  // namespace
}  // namespace tokops

// For ctypes: null when all went well, else the message.
#define SAMPLE extern "C" __attribute__((visibility("default"))) const char*
using namespace tokops;

SAMPLE sample_mirror(int* out, int kind, int barrier, int blocks) {
  auto kernel = kind == 0   ? barrier ? mirror<true> : mirror<false>
                : kind == 1 ? barrier ? mirror_twice<true> : mirror_twice<false>
                : barrier   ? mirror_warp<true>
                            : mirror_warp<false>;
  return result_of(kernel, blocks, 128, 0, out);
}
SAMPLE sample_shuffles(int* out) { return result_of(shuffles, 1, 32, 0, out); }
SAMPLE sample_votes(unsigned* out) { return result_of(votes, 1, 32, 0, out); }
SAMPLE sample_block_votes(int* out, int blocks) {
  return result_of(block_votes, blocks, 96, 0, out);
}
SAMPLE sample_product(const void* a, const void* b, float* d, int half, int trans, int wait) {
  const char* message = nullptr;
  dispatch<__half, __nv_bfloat16>(half ? DType::f16 : DType::bf16, "product", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto kernel = !wait   ? product<T, true, false>
                  : trans ? product<T, true, true>
                          : product<T, false, true>;
    message = result_of(kernel, 1, 32, 256, static_cast<const T*>(a), static_cast<const T*>(b), d);
  });
  return message;
}
SAMPLE sample_zero_fill(const float* in, float* out, int n) {
  return result_of(zero_fill, 1, 64, 256, in, out, n);
}
SAMPLE sample_refill(const float* in, float* out, int barrier) {
  return result_of(barrier ? refill<true> : refill<false>, 1, 128, 512, in, out);
}
SAMPLE sample_last_block(const float* in, float* part, unsigned* done, float* out, int blocks) {
  return result_of(last_block, blocks, 128, 0, in, part, done, out);
}
SAMPLE sample_atomics(int* out) { return result_of(atomics, 4, 100, 0, out); }
SAMPLE sample_chain(int* out, int blocks) { return result_of(chain, blocks, 1, 0, out); }
SAMPLE sample_unwritten(float* out, int blocks) {
  return result_of(unwritten, blocks, 32, 128, out);
}
SAMPLE sample_diverge(int kind) { return result_of(diverge, 3, 64, 0, kind); }
SAMPLE sample_overrun(int* out, int kind, int by) {
  return result_of(overrun, 1, 32, 128, out, kind, by);
}
SAMPLE sample_launch(int grid, int block, int shared) {
  return result_of(diverge, grid, block, shared, -1);
}
