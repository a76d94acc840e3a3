// paged_decode on CUDA: the launch shape, the choice of arithmetic, and the merge of splits, which
// packed_decode shares.
#include "attention/paged_decode.cuh"

namespace tokops {
namespace paged {
namespace {

constexpr int kBlocksPerSm = 8;  // a few waves, so that ragged lengths even out
constexpr int kStreamWaves = 4;

int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "paged_decode");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "paged_decode");
  return count;
}

bool aligned(const void* base, int64_t a, int64_t b, int64_t c, int bytes) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && (a | b | c) * bytes % 16 == 0;
}

// Rows per warp and row tiles per block for `rows` rows that read the same keys.
void choose_tiles(Plan& plan, int rows) {
  const bool wide = plan.p.D > 128, single = plan.p.dtype == DType::f32;
  int least = 1, most = 4;
  if (single) {
    least = wide ? 2 : 1;  // a tile of 16 keys feeds two warps
    plan.row_tile = rows <= least ? 1 : rows <= 4 * least ? 4 : 8;
  } else {
    plan.row_tile = rows <= 1 ? 1 : rows <= 4 ? 4 : 16;
    most = wide ? 2 : 4;  // shared memory
  }
  plan.warps_m = least;
  while (plan.warps_m < most && plan.row_tile * plan.warps_m < rows) plan.warps_m *= 2;
}

}  // namespace

Plan plan_rows(const PagedDecode& p, const char* op, bool may_stream) {
  if (p.D != 64 && p.D != 80 && p.D != 96 && p.D != 128 && p.D != 192 && p.D != 256)
    throw std::runtime_error(std::string(op) +
                             ": head dimension must be 64, 80, 96, 128, 192 or 256 on CUDA, got " +
                             std::to_string(p.D));
  Plan plan{};
  plan.op = op;
  plan.p = p;
  plan.page_shift = shift_of(p.P);
  plan.resident = kStreamBlocks;
  const int per_kv = p.Hq / p.Hkv;
  plan.lists_t = p.selected && p.sel_rows > 1 ? p.T : 1;
  plan.lists_g = p.selected && p.sel_heads > p.Hkv ? per_kv : 1;
  const int heads = plan.lists_g > 1 ? 1 : per_kv, tokens = plan.lists_t > 1 ? 1 : p.T;
  plan.streamed =
      may_stream && p.dtype != DType::f32 && p.D <= 128 && heads * tokens <= kStreamRows;
  if (plan.streamed) {
    plan.row_tile = heads * tokens <= 8 ? 8 : kStreamRows;
    plan.warps_m = 1;
  } else {
    choose_tiles(plan, heads * tokens);
  }
  const int fit = plan.row_tile * plan.warps_m / heads;
  plan.blocks = (tokens + fit - 1) / fit;
  plan.tokens = (tokens + plan.blocks - 1) / plan.blocks;
  plan.blocks = (tokens + plan.tokens - 1) / plan.tokens;
  return plan;
}

int64_t groups_of(const Plan& plan) {
  return int64_t(plan.p.B) * plan.lists_t * plan.p.Hkv * plan.lists_g;
}

int64_t wanted_splits(const Plan& plan) {
  const int64_t base = groups_of(plan) * plan.blocks;
  if (base == 0) return 1;
  // One sequence: blocks of one size, all at once. Several may be of many lengths.
  const int64_t waves = plan.p.B == 1 ? 1 : kStreamWaves;
  int64_t splits = waves * plan.resident * multiprocessors() / base;
  if (!plan.streamed) splits = (int64_t(kBlocksPerSm) * multiprocessors() + base - 1) / base;
  const int64_t most = kMaxSplits - 32;  // parts may round theirs up
  return splits < 1 ? 1 : splits < most ? splits : most;
}

size_t partial_bytes(const Plan& plan) {
  const PagedDecode& p = plan.p;
  if (plan.splits == 1 || !p.out) return 0;
  return size_t(p.B) * p.T * p.Hq * plan.splits * (p.D + 2) * sizeof(float);
}

void place_partials(Plan& plan) {
  const PagedDecode& p = plan.p;
  plan.part_out = static_cast<float*>(p.workspace);
  const int64_t parts = int64_t(p.B) * p.T * p.Hq * plan.splits;
  plan.part_top = plan.part_out + parts * p.D;
  plan.part_total = plan.part_top + parts;
}

namespace {

Plan make_plan(const PagedDecode& p) {
  Plan plan = plan_rows(p, "paged_decode", true);
  int64_t keys = p.selected ? p.sel_k : int64_t(p.pages) * p.P;
  if (p.window && !p.selected)
    keys = keys < int64_t(p.window) + p.T ? keys : int64_t(p.window) + p.T;
  const int64_t wanted = wanted_splits(plan), most = (keys + kChunk - 1) / kChunk;
  plan.splits = int(wanted < most ? wanted : most);
  if (plan.splits < 1) plan.splits = 1;

  const int bytes = p.dtype == DType::f32 ? 4 : 2;
  plan.vector_k = aligned(p.k, p.k_n, p.k_h, p.k_p, bytes);
  plan.vector_v = aligned(p.v, p.v_n, p.v_h, p.v_p, bytes);
  place_partials(plan);
  return plan;
}

constexpr int kMergeThreads = 512;
constexpr int kFewSplits = 16;

// Weights of a row's splits relative to their largest maximum, and what they add up to.
struct Weights {
  float top, total;
};
__device__ Weights weigh_splits(const Plan& plan, int64_t row, float* weights) {
  __shared__ float tops[kMergeThreads / 32], totals[kMergeThreads / 32];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, live = plan.splits;
  const float* part_top = plan.part_top + row * plan.splits;
  const float* part_total = plan.part_total + row * plan.splits;
  float top = -INFINITY, total = 0.f;
  for (int s = threadIdx.x; s < live; s += blockDim.x) top = fmaxf(top, weights[s] = part_top[s]);
  top = warp_max(top);
  if (threadIdx.x % 32 == 0) tops[warp] = top;
  __syncthreads();  // all warps' maxima are written
  for (int i = 0; i < warps; ++i) top = fmaxf(top, tops[i]);
  for (int s = threadIdx.x; s < live; s += blockDim.x) {
    const float m = weights[s];  // this thread's own
    weights[s] = m > -INFINITY ? ptx::exp2_fast((m - top) * kLog2e) : 0.f;
    if (m > -INFINITY) total += part_total[s] * weights[s];
  }
  total = warp_sum(total);
  if (threadIdx.x % 32 == 0) totals[warp] = total;
  __syncthreads();  // all weights and totals are written
  total = 0.f;
  for (int i = 0; i < warps; ++i) total += totals[i];
  return {top, total};
}

// One block merges the splits of one row. Threads are slices of D / 4 lanes; a slice takes every so
// many splits, the first few of them while the weights are made.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const Plan plan) {
  __shared__ float weights[kMaxSplits], sums[kMergeThreads * 4], turned[256];
  constexpr int kEarly = 4;
  const PagedDecode& p = plan.p;
  const int64_t row = blockIdx.x;
  const int h = row % p.Hq, t = row / p.Hq % p.T;
  const RowView view = row_view(p, int(row / p.Hq / p.T), h / (p.Hq / p.Hkv));
  const int lanes = p.D / 4, slices = blockDim.x / lanes;
  const int lane = threadIdx.x % lanes, slice = threadIdx.x / lanes;
  const int mine = slice < slices ? plan.splits : 0;
  const float* from = plan.part_out + row * plan.splits * p.D + 4 * lane;
  const auto part = [&](int s) {
    return *reinterpret_cast<const Pack<float, 4>*>(from + int64_t(s) * p.D);
  };
  Pack<float, 4> early[kEarly];
#pragma unroll
  for (int k = 0; k < kEarly; ++k)
    if (slice + k * slices < mine) early[k] = part(slice + k * slices);
  const Weights all = weigh_splits(plan, row, weights);

  // An empty split has left nothing and weighs nothing.
  float o[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int k = 0; k < kEarly; ++k)
    for (int e = 0; e < 4 && slice + k * slices < mine; ++e)
      o[e] += weighed(early[k].at[e], weights[slice + k * slices]);
#pragma unroll 4
  for (int s = slice + kEarly * slices; s < mine; s += slices) {
    const auto x = part(s);
    for (int e = 0; e < 4; ++e) o[e] += weighed(x.at[e], weights[s]);
  }
  for (int e = 0; e < 4 && mine > 0; ++e) sums[slice * p.D + 4 * lane + e] = o[e];
  __syncthreads();  // all slices are written
  const Closing c = close_row(p, t < view.rows, h, all.top, all.total);
  for (int d = threadIdx.x; d < p.D; d += blockDim.x) {
    float sum = 0.f;
    for (int s = 0; s < slices; ++s) sum += sums[s * p.D + d];
    if (p.rotate) turned[d] = weighed(sum, c.gain);
    if (!p.rotate) static_cast<T*>(p.out)[row * p.D + d] = from_float<T>(weighed(sum, c.gain));
    if (d == 0) p.lse[row] = c.lse;
  }
  if (!p.rotate) return;
  hadamard_rows(turned, 1, p.D, p.D);
  for (int d = threadIdx.x; d < p.D; d += blockDim.x)
    static_cast<T*>(p.out)[row * p.D + d] = from_float<T>(turned[d]);
}

// The same of few splits: a row per warp.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_few_kernel(const Plan plan, int64_t rows) {
  __shared__ float turned[kWarps * 256];
  const PagedDecode& p = plan.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp;
  const bool real = row < rows;
  const int64_t at = (real ? row : 0) * plan.splits;
  ptx::wait_for_last();
  const float mine = lane < plan.splits ? plan.part_top[at + lane] : -INFINITY;
  const float top = warp_max(mine);
  const float weight = mine > -INFINITY ? ptx::exp2_fast((mine - top) * kLog2e) : 0.f;
  const float total = warp_sum(mine > -INFINITY ? plan.part_total[at + lane] * weight : 0.f);
  const int h = at / plan.splits % p.Hq, t = at / plan.splits / p.Hq % p.T;
  const RowView view = row_view(p, int(at / plan.splits / p.Hq / p.T), h / (p.Hq / p.Hkv));
  const Closing c = close_row(p, t < view.rows, h, top, total);
  for (int first = 0; first < p.D; first += 128) {
    const int d = first + 4 * lane;
    float o[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
    for (int s = 0; s < plan.splits; ++s) {
      const float w = __shfl_sync(kFullWarp, weight, s);
      Pack<float, 4> x{};
      if (d < p.D) x = *reinterpret_cast<const Pack<float, 4>*>(plan.part_out + (at + s) * p.D + d);
      for (int e = 0; e < 4; ++e) o[e] += weighed(x.at[e], w);
    }
    for (int e = 0; e < 4 && d < p.D; ++e) {
      const float x = weighed(o[e], c.gain);
      if (p.rotate) turned[warp * 256 + d + e] = x;
      if (!p.rotate && real) static_cast<T*>(p.out)[row * p.D + d + e] = from_float<T>(x);
    }
  }
  if (lane == 0 && real) p.lse[row] = c.lse;
  if (!p.rotate) return;
  hadamard_rows(turned, kWarps, p.D, 256);
  for (int d = lane; d < p.D && real; d += 32)
    static_cast<T*>(p.out)[row * p.D + d] = from_float<T>(turned[warp * 256 + d]);
}

}  // namespace

void run_merge(const Plan& plan, const Queue& q) {
  const PagedDecode& p = plan.p;
  const int64_t rows = int64_t(p.B) * p.T * p.Hq;
  if (plan.splits == 1 || !p.out) return;
  if (rows > INT32_MAX)
    throw std::runtime_error(std::string(plan.op) + ": too many rows for one launch");
  dispatch<float, __half, __nv_bfloat16>(p.dtype, plan.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    // Of many splits of few rows, early blocks were in the way: 41.5 us became 43.8 at B1 L16384.
    if (plan.splits > kFewSplits)
      launch(merge_kernel<T>, dim3(unsigned(rows)), dim3(kMergeThreads), 0, q, plan);
    else
      launch_as(Start::early, 1, merge_few_kernel<T>, dim3(unsigned((rows + kWarps - 1) / kWarps)),
                dim3(kThreads), 0, q, plan, rows);
  });
}

}  // namespace paged

size_t paged_decode_workspace(const PagedDecode& p) {
  return paged::partial_bytes(paged::make_plan(p));
}

void paged_decode(const PagedDecode& p, const Queue& q) {
  const paged::Plan plan = paged::make_plan(p);
  if (int64_t(p.B) * p.T * p.Hq == 0) return;
  if (plan.streamed) {
    paged::run_streams(plan, q);
  } else if (plan.row_tile == 16) {
    paged::run_mma(plan, q);
  } else {
    paged::run_simt(plan, q);
  }
  paged::run_merge(plan, q);
}

}  // namespace tokops
