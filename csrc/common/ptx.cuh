// Every word of inline PTX, each beside a plain C++ twin that tests/cuda_sim runs.
#pragma once
#include "common/cuda.cuh"

namespace tokops::ptx {

// ---- Shared memory by its own addresses: of 32 bits, made once, and then moved by bytes. ----

#if defined(TOKOPS_CUDA_SIM_KERNEL)
using Shared = const unsigned char*;
#else
using Shared = uint32_t;
#endif
__device__ __forceinline__ Shared shared_at(const void* x) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  return static_cast<Shared>(x);
#else
  return uint32_t(__cvta_generic_to_shared(x));
#endif
}

__device__ __forceinline__ uint32_t load_word(Shared at) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  return *reinterpret_cast<const uint32_t*>(at);
#else
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at));
  return x;
#endif
}
// An address with some bits the other way round.
__device__ __forceinline__ Shared flip(Shared at, uint32_t bits) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  return reinterpret_cast<Shared>(reinterpret_cast<uintptr_t>(at) ^ bits);
#else
  return at ^ bits;
#endif
}

// ---- One kernel after another, see Start. ----

__device__ __forceinline__ void start_next() {
#if !defined(TOKOPS_CUDA_SIM_KERNEL) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_last() {
#if !defined(TOKOPS_CUDA_SIM_KERNEL) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for a line of global memory to be brought near.
__device__ __forceinline__ void prefetch(const void* x) {
#if !defined(TOKOPS_CUDA_SIM_KERNEL)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(x));
#else
  (void)x;
#endif
}

// ---- Clusters of blocks that read each other's shared memory, from compute capability 9.0 on. The
// simulator has none: there a cluster is one block. ----

__device__ __forceinline__ int cluster_rank() {
#if !defined(TOKOPS_CUDA_SIM_KERNEL) && __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
#else
  return 0;
#endif
}
// A barrier of all threads of the cluster; what was written before it is seen after it.
__device__ __forceinline__ void cluster_sync() {
#if !defined(TOKOPS_CUDA_SIM_KERNEL) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
// The same variable of shared memory in the block of that rank.
template <class T>
__device__ __forceinline__ T* of_rank(T* x, int rank) {
#if !defined(TOKOPS_CUDA_SIM_KERNEL) && __CUDA_ARCH__ >= 900
  uint64_t at;
  asm("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(reinterpret_cast<uint64_t>(x)), "r"(rank));
  return reinterpret_cast<T*>(at);
#else
  (void)rank;
  return x;
#endif
}

// ---- Asynchronous copies, global to shared. They land at cp_async_wait, not before. ----

// Copies Bytes (4, 8 or 16, both addresses aligned to it); where `real` is false, writes zeros and
// reads nothing.
template <int Bytes = 16>
__device__ __forceinline__ void cp_async(Shared to, const void* global, bool real = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  sim::async_copy(const_cast<unsigned char*>(to), global, Bytes, real);
#else
  const int bytes = real ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes),
                 "r"(bytes)
                 : "memory");
  }
#endif
}

template <int Bytes = 16>
__device__ __forceinline__ void cp_async(void* to, const void* global, bool real = true) {
  cp_async<Bytes>(shared_at(to), global, real);
}

// Closes the group of copies that this thread has issued since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  sim::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but this thread's latest N groups have landed. Other threads see them after a
// barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  sim::async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- Matrix fragments. The whole warp takes part; every 8 x 8 tile holds 16-bit elements. ----

// Loads four tiles. Lane 8 i + r gives the 16-byte aligned shared address of row r of tile i; the
// lane then holds of tile i, in fragment[i], the pair at row lane / 4, columns 2 (lane % 4) and
// + 1.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], Shared row) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto& rows = sim::gather_rows(row);
  for (int i = 0; i < 4; ++i) fragment[i] = rows[8 * i + sim::lane() / 4].word[sim::lane() % 4];
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
#endif
}

// The same, each tile transposed: the lane gets the pair at rows 2 (lane % 4) and + 1, column lane
// / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&fragment)[4], Shared row) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto& rows = sim::gather_rows(row);
  const int r = 2 * (sim::lane() % 4), c = sim::lane() / 4;
  for (int i = 0; i < 4; ++i)
    fragment[i] = rows[8 * i + r].half_word(c) | uint32_t(rows[8 * i + r + 1].half_word(c)) << 16;
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  ldmatrix_x4(fragment, shared_at(row));
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  ldmatrix_x4_trans(fragment, shared_at(row));
}

// An 8 x 8 tile, of which the lane holds the pair at row lane / 4, columns 2 (lane % 4) and + 1,
// transposed.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto& warp = sim::gather(pair, "transpose");
  const int r = 2 * (sim::lane() % 4), c = sim::lane() / 4;
  const auto half = [&](int row) { return warp[4 * row + c / 2] >> 16 * (c % 2) & 0xffff; };
  return half(r) | half(r + 1) << 16;
#else
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(pair));
  return d;
#endif
}

// d [16, 8] += a [16, 16] b [16, 8] in fp32; T is __half or __nv_bfloat16. With g = lane / 4, t =
// lane % 4 the lane holds
//   a[0..3]: the pairs at (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)     = ldmatrix_x4 of
//   the row-major tiles b[0..1]: column g, the pairs of rows 2t and 2t + 8 = ldmatrix of b's
//   transpose, row-major d[0..3]: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  struct Operands {
    uint32_t a[4], b[2];
  };
  const auto& warp = sim::gather(Operands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, "mma_16816");
  const int g = sim::lane() / 4, t = sim::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t x = warp[4 * g + k % 8 / 2].a[row_half + 2 * (k / 8)];
      const uint32_t y = warp[4 * column + k % 8 / 2].b[k / 8];
      d[i] += sim::half_of<T>(x, k % 2) * sim::half_of<T>(y, k % 2);
    }
  }
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// Two floats as float16, `low` in the low half, cut where they are beyond 65504; NaN stays.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto cut = [](float x) { return x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x; };
  return pack_two<__half>(cut(low), cut(high));
#else
  uint32_t word;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}

// x, of which the compiler no longer knows anything: what depends on it stays inside a loop or a
// branch, and costs no register outside.
__device__ __forceinline__ unsigned opaque(unsigned x) {
#if !defined(TOKOPS_CUDA_SIM_KERNEL)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Sums and products of two float16 pairs in registers, each rounded once.
__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto at = [&](int i) { return sim::half_of<__half>(a, i) * sim::half_of<__half>(b, i); };
  return pack_two<__half>(at(0), at(1));
#else
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
#endif
}
__device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  const auto at = [&](int i) {
    return sim::half_of<__half>(a, i) * sim::half_of<__half>(b, i) + sim::half_of<__half>(c, i);
  };
  return pack_two<__half>(at(0), at(1));
#else
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#endif
}

// 2^x to about 2 units in the last place, denormal results flushed.
__device__ __forceinline__ float exp2_fast(float x) {
#if defined(TOKOPS_CUDA_SIM_KERNEL)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace tokops::ptx
