// Torch-free words that bindings and kernels share.
#pragma once
#include <cstdint>

// A function that CPU and CUDA kernels share.
#if defined(__CUDACC__) || defined(TOKOPS_CUDA_SIM_KERNEL)
#define TOKOPS_HD __host__ __device__ inline
#else
#define TOKOPS_HD inline
#endif
// The same, and on CUDA it stays a call: what is long and seldom compiles apart from its callers.
#if defined(__CUDACC__)
#define TOKOPS_HD_CALL __host__ __device__ __noinline__
#else
#define TOKOPS_HD_CALL TOKOPS_HD
#endif

namespace tokops {

enum class DType : int { f32, bf16, f16 };

// Where work goes: a CUDA stream, or torch's CPU thread pool.
struct Queue {
  void* stream = nullptr;
  void (*pool)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*) = nullptr;

  // Runs f(begin, end) over [0, n) in chunks of at least `grain`. f must not throw.
  template <class F>
  void parallel(int64_t n, int64_t grain, const F& f) const {
    pool(
        0, n, grain, [](int64_t b, int64_t e, void* c) { (*static_cast<const F*>(c))(b, e); },
        const_cast<F*>(&f));
  }
};

}  // namespace tokops
