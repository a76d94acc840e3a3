#include "kvcache/attention_colsum.tile.cuh"

namespace tokops {
namespace {

using namespace colsum;

// One block per 64 folded rows of a (sequence, KV head): they stay in shared memory while the keys
// pass, 64 at a time. Every lane keeps maxima and sums over its own keys of two rows; four lanes
// merge at the end.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) normalise_kernel(AttentionColsum p, int heads) {
  TOKOPS_SHARED_DYNAMIC(T, rows);
  const Head<T> h(p, int(blockIdx.x % heads));
  const int blocks = int(gridDim.x / heads);
  const int r0 = (blocks - 1 - int(blockIdx.x / heads)) * kRows;  // those that see most come first
  const int stride = row_stride<T>(p.D), own = threadIdx.x / 32 * 16;
  T* keys = rows + kRows * stride;
  load_tile<T>(p, [&](int i) { return h.query(r0 + i); }, rows);
  const int last = h.position(min(r0 + kRows, h.rows) - 1);
  const int pos[2] = {h.position(r0 + own + row_of(0)), h.position(r0 + own + row_of(2))};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int k0 = h.start; k0 <= last; k0 += kKeys) {
    __syncthreads();
    load_tile<T>(p, [&](int i) { return h.key(k0 + i); }, keys);
    __syncthreads();
    Scores s = products<T>(rows + own * stride, keys, p.D);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float high = top[i];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = s.at[n][2 * i + j];
          x = k0 + key_of(n, j) <= pos[i] ? bend(sane(x * p.scale), p.softcap) : -INFINITY;
          high = x > high ? x : high;
        }
      if (high == -INFINITY) continue;
      sum[i] *= expf(top[i] - high);
      top[i] = high;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        sum[i] += expf(s.at[n][2 * i] - high) + expf(s.at[n][2 * i + 1] - high);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float high = warp_max<4>(top[i]);
    const float total = warp_sum<4>(top[i] == -INFINITY ? 0.f : sum[i] * expf(top[i] - high));
    if (pos[i] >= 0 && threadIdx.x % 4 == 0)
      *h.lse(r0 + own + row_of(2 * i)) = total > 0.f ? high + logf(total) : -INFINITY;
  }
}

// Rows before the first that counts: one thread per number.
__global__ void empty_rows_kernel(AttentionColsum p) {
  const int64_t each = int64_t(p.first_row) * p.Hq;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.B * each) p.lse[i / each * p.T * p.Hq + i % each] = -INFINITY;
}

// One block per 64 keys of a (sequence, KV head): they stay in shared memory while the rows that
// see them pass, 64 at a time. Every lane adds up its own keys; rows of lanes and warps merge at
// the end.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) colsum_kernel(AttentionColsum p, int heads) {
  TOKOPS_SHARED_DYNAMIC(T, keys);
  __shared__ float lses[kRows], parts[kWarps][kKeys];
  __shared__ int positions[kRows];
  const Head<T> h(p, int(blockIdx.x % heads));
  const int k0 = int(blockIdx.x / heads) * kKeys, stride = row_stride<T>(p.D);
  const int warp = threadIdx.x / 32;
  T* rows = keys + kKeys * stride;
  load_tile<T>(p, [&](int i) { return h.key(k0 + i); }, keys);
  float sum[kKeys / 8][2] = {};
  const int begin = k0 + kKeys > h.start ? h.row_at(max(k0, h.start)) : h.rows;
  for (int r0 = begin; r0 < h.rows; r0 += kRows) {
    __syncthreads();
    load_tile<T>(p, [&](int i) { return h.query(r0 + i); }, rows);
    if (threadIdx.x < kRows) {
      const int r = r0 + int(threadIdx.x);
      const float lse = r < h.rows ? *h.lse(r) : -INFINITY;
      lses[threadIdx.x] = lse;
      positions[threadIdx.x] = lse == -INFINITY ? -1 : h.position(r);
    }
    __syncthreads();
    const Scores s = products<T>(rows + warp * 16 * stride, keys, p.D);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = warp * 16 + row_of(e), pos = positions[row];
      const float lse = lses[row];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const int key = k0 + key_of(n, e);
        if (key >= h.start && key <= pos)
          sum[n][e % 2] += mass_of(sane(s.at[n][e] * p.scale), lse, p.softcap);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int o = 16; o >= 4; o /= 2) sum[n][j] += __shfl_xor_sync(kFullWarp, sum[n][j], o);
      if (threadIdx.x % 32 < 4) parts[warp][key_of(n, j)] = sum[n][j];
    }
  __syncthreads();
  const int i = int(threadIdx.x);
  if (i >= kKeys || k0 + i >= p.L) return;
  float total = 0.f;
  for (int w = 0; w < kWarps; ++w) total += parts[w][i];
  p.acc[(int64_t(h.b) * p.Hkv + h.hkv) * p.L + k0 + i] = total;
}

}  // namespace

void attention_colsum(const AttentionColsum& p, const Queue& q) {
  const int heads = p.B * p.Hkv, rows = (p.T - p.first_row) * (p.Hq / p.Hkv);
  const int64_t row_blocks = (rows + kRows - 1) / kRows, key_blocks = (p.L + kKeys - 1) / kKeys;
  const int64_t empty = int64_t(p.B) * p.first_row * p.Hq;
  if (p.find_lse && empty > 0)
    launch(empty_rows_kernel, dim3(unsigned((empty + kThreads - 1) / kThreads)), dim3(kThreads), 0,
           q, p);
  dispatch<float, __nv_bfloat16, __half>(p.dtype, "attention_colsum", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const size_t shared = sizeof(T) * (kRows + kKeys) * row_stride<T>(p.D);
    if (p.find_lse && rows > 0)
      launch(normalise_kernel<T>, dim3(unsigned(row_blocks * heads)), dim3(kThreads), shared, q, p,
             heads);
    launch(colsum_kernel<T>, dim3(unsigned(key_blocks * heads)), dim3(kThreads), shared, q, p,
           heads);
  });
}

}  // namespace tokops
