// Torch-free helpers for .cu files. tests/cuda_sim compiles the same files with g++, hence a few
// twins.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/backend.h"

namespace tokops {

// ---- Host: launching and dispatch. ----

inline cudaStream_t stream(const Queue& q) { return static_cast<cudaStream_t>(q.stream); }

inline void check_cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(e));
}
inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op); }

// How a kernel starts. `early`, on devices that can: as soon as all blocks of the kernel before it
// have called ptx::start_next, and it calls ptx::wait_for_last before it reads what that one
// writes.
enum class Start { in_order, early };

// Whether the code that this device runs of a kernel was made for compute capability 9.0 or more.
inline bool made_for_hopper(const void* kernel) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  return kernel == nullptr;
#else
  cudaFuncAttributes made{};
  check_cuda(cudaFuncGetAttributes(&made, kernel), "launch");
  return made.ptxVersion >= 90;
#endif
}

// kernel<<<grid, block, shared, stream(q)>>>(args...): `shared` counts dynamic bytes, any amount
// the device has.
// `cluster` blocks in a row along x form a cluster.
template <class... P, class... A>
void launch_as(Start start, unsigned cluster, void (*kernel)(P...), dim3 grid, dim3 block,
               size_t shared, const Queue& q, A&&... args) {
  std::tuple<P...> values(static_cast<P>(std::forward<A>(args))...);
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  (void)q;
  (void)start;
  (void)cluster;
  sim::run(grid, block, shared, [&] { std::apply(kernel, values); });
#else
  const void* f = reinterpret_cast<const void*>(kernel);
  if (shared > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
               "launch");
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (start == Start::early && made_for_hopper(f)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream(q);
  config.attrs = attributes;
  config.numAttrs = count;
  std::apply(
      [&](P&... v) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&v))..., nullptr};
        check_cuda(cudaLaunchKernelExC(&config, f, pointers), "launch");
      },
      values);
#endif
}
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const Queue& q,
            A&&... args) {
  launch_as(Start::in_order, 1, kernel, grid, block, shared, q, std::forward<A>(args)...);
}

template <class T>
struct Tag {
  using type = T;
};
template <class T>
inline constexpr DType dtype_v = std::is_same_v<T, float>    ? DType::f32
                                 : std::is_same_v<T, __half> ? DType::f16
                                                             : DType::bf16;

// dispatch<float, __half>(d, op, f): calls f(Tag<T>{}) for the T that d names.
template <class... Ts, class F>
void dispatch(DType d, const char* op, F&& f) {
  if (!((d == dtype_v<Ts> ? (f(Tag<Ts>{}), true) : false) || ...))
    throw std::runtime_error(std::string(op) + ": dtype not built");
}

// dispatch_int<64, 128>(v, f): calls f(std::integral_constant<int, N>{}); false when v is none of
// them.
template <int... Ns, class F>
bool dispatch_int(int v, F&& f) {
  return ((v == Ns ? (f(std::integral_constant<int, Ns>{}), true) : false) || ...);
}

// ---- Device: shared memory, conversion, reductions over a warp. ----

// TOKOPS_SHARED_DYNAMIC(float, buffer): `float* buffer`, the dynamic shared memory, aligned to 128
// bytes.
#if defined(TOKOPS_CUDA_SIM_KERNEL)
#define TOKOPS_SHARED_DYNAMIC(type, name) \
  type* const name = static_cast<type*>(::tokops::sim::dynamic_shared())
#else
#define TOKOPS_SHARED_DYNAMIC(type, name)                                  \
  extern __shared__ __align__(128) unsigned char tokops_dynamic_shared_[]; \
  type* const name = reinterpret_cast<type*>(tokops_dynamic_shared_)
#endif

// A device function that stays a call.
#if defined(TOKOPS_CUDA_SIM_KERNEL)
#define TOKOPS_NOINLINE __attribute__((noinline))
#else
#define TOKOPS_NOINLINE __noinline__
#endif

inline constexpr unsigned kFullWarp = 0xffffffffu;

// N values that one load or store moves.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

__host__ __device__ __forceinline__ float to_float(float x) { return x; }
__host__ __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__host__ __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__host__ __device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Element i of an array whose dtype is known at run time.
__device__ __forceinline__ float element_at(DType d, const void* x, int64_t i) {
  return d == DType::f32    ? static_cast<const float*>(x)[i]
         : d == DType::bf16 ? to_float(static_cast<const __nv_bfloat16*>(x)[i])
                            : to_float(static_cast<const __half*>(x)[i]);
}
__device__ __forceinline__ void store_element(DType d, void* x, int64_t i, float value) {
  if (d == DType::f32)
    static_cast<float*>(x)[i] = value;
  else if (d == DType::bf16)
    static_cast<__nv_bfloat16*>(x)[i] = from_float<__nv_bfloat16>(value);
  else
    static_cast<__half*>(x)[i] = from_float<__half>(value);
}

// Two floats rounded to T and packed in a register, `low` in the low half: the operand word of mma.
template <class T>
__device__ __forceinline__ uint32_t pack_two(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 two = __floats2half2_rn(low, high);
    memcpy(&word, &two, sizeof word);
  } else {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    memcpy(&word, &two, sizeof word);
  }
  return word;
}

// Reductions over aligned groups of Width lanes; the whole warp takes part and every lane gets the
// result.
template <int Width = 32, class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int o = Width / 2; o > 0; o /= 2) v += __shfl_xor_sync(kFullWarp, v, o);
  return v;
}
template <int Width = 32, class T>
__device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int o = Width / 2; o > 0; o /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, v, o);
    v = other > v ? other : v;
  }
  return v;
}

}  // namespace tokops
