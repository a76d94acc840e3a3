// What the CUDA parts of paged_decode and packed_decode share: how work is cut into blocks, and how
// a row's results leave them.
#pragma once
#include <cfloat>
#include <cmath>

#include "attention/paged_decode.h"
#include "common/cuda.cuh"
#include "common/ptx.cuh"

namespace tokops::paged {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps;
inline constexpr int kChunk = 64;  // a split starts at a multiple of this many keys
inline constexpr int kMaxSplits = 1024;
inline constexpr int kStreamRows = 16;   // of a streamed plan's block, at most
inline constexpr int kStreamBlocks = 3;  // of a streamed plan on a multiprocessor
inline constexpr float kLog2e = 1.4426950408889634f, kRootHalf = 0.70710678118654752f;

// Host-made launch shape. A group is all rows that read one list of keys; a block takes a run of
// its tokens.
struct Plan {
  const char* op;  // its name, for errors
  PagedDecode p;
  bool streamed;       // every warp streams keys of its own; else a block shares its tiles
  int row_tile;        // rows per warp
  int warps_m;         // row tiles per block; kWarps / warps_m warps share the keys of one row tile
  int tokens, blocks;  // new tokens per block, blocks per group
  int splits;          // blocks along the keys
  int lists_t,
      lists_g;  // groups per sequence along the tokens, and per KV head along its query heads
  bool vector_k, vector_v;
  int page_shift;  // P = 1 << page_shift, or -1
  int resident;    // streamed: blocks on a multiprocessor
  // Per row and split: the sum of values [D], and what it is relative to, maximum and total. Not an
  // lse, which would lose the total next to a maximum of FLT_MAX.
  float *part_out, *part_top, *part_total;
};

// paged_decode.cu. The launch shape but for the splits, from shapes alone: the same for every call
// on a captured graph.
Plan plan_rows(const PagedDecode& p, const char* op, bool may_stream);
int64_t groups_of(const Plan& plan);      // lists of keys
int64_t wanted_splits(const Plan& plan);  // of every group, to fill the device
void place_partials(Plan& plan);
size_t partial_bytes(const Plan& plan);
void run_merge(const Plan& plan, const Queue& q);

void run_simt(const Plan& plan, const Queue& q);     // any dtype, row_tile 1, 4, 8
void run_mma(const Plan& plan, const Queue& q);      // bf16 and f16, row_tile 16
void run_streams(const Plan& plan, const Queue& q);  // bf16 and f16, streamed

inline int shift_of(int n) {
  int shift = 0;
  while (n >> shift > 1) ++shift;
  return n > 0 && n == 1 << shift ? shift : -1;
}
inline int padded_dim(int d) { return d <= 64 ? 64 : d <= 128 ? 128 : 256; }

namespace {

// The threads that bring in tiles and work on them together: those of a block, or of a warp, which
// then waits for nobody.
struct BlockTeam {
  static constexpr int kSize = kThreads, kTeams = 1;
  __device__ static int rank() { return threadIdx.x; }
  __device__ static int index() { return 0; }
  __device__ static void sync() { __syncthreads(); }
};
struct WarpTeam {
  static constexpr int kSize = 32, kTeams = kWarps;
  __device__ static int rank() { return threadIdx.x % 32; }
  __device__ static int index() { return threadIdx.x / 32; }
  __device__ static void sync() { __syncwarp(); }
};

// Slots [least, len) of a part of a cache, the first at logical position `first`.
struct Extent {
  int first, least, len;
};

// What one block does: its rows, and the indices [begin, end) of its group's keys, all splits.
struct Work {
  int split, part;                // of a cache in parts
  Extent extent;                  // of that part
  int b, hkv, t0, t1, h0, heads;  // rows (t, h): t in [t0, t1), h in [h0, h0 + heads)
  RowView view;
  const int32_t* list;  // selected positions, or null: index = position
  int list_size;
  int begin, end;
  int chunk;  // indices per split
  __device__ int rows() const { return (t1 - t0) * heads; }
};

// Indices [begin, end) of the keys of one split, or of one team's share of it.
struct Span {
  int begin, end;
};

// A split's share of n keys.
__device__ inline int split_size(int n, int splits) {
  const int each = (n + splits - 1) / splits;
  return each <= kChunk ? kChunk : (each + kChunk - 1) / kChunk * kChunk;
}

__device__ __forceinline__ int page_of(int pos, int P, int shift) {
  return shift >= 0 ? pos >> shift : pos / P;
}

// The rows of a block and the list they read, without keys.
__device__ inline Work rows_of(const Plan& plan, int64_t group, int block) {
  const PagedDecode& p = plan.p;
  const int per_kv = p.Hq / p.Hkv;
  Work w;
  const int g = group % plan.lists_g;
  group /= plan.lists_g;
  w.hkv = group % p.Hkv;
  group /= p.Hkv;
  w.t0 = plan.lists_t > 1 ? int(group % plan.lists_t) : block * plan.tokens;
  w.b = group / plan.lists_t;
  w.t1 = w.t0 + plan.tokens < p.T ? w.t0 + plan.tokens : p.T;
  w.h0 = w.hkv * per_kv + g;
  w.heads = plan.lists_g > 1 ? 1 : per_kv;
  w.view = row_view(p, w.b, w.hkv);
  w.list = nullptr;
  w.list_size = w.begin = w.end = w.chunk = w.split = w.part = 0;
  w.extent = {0, 0, 0};
  if (p.selected) {
    const int s = p.sel_rows > 1 ? w.t0 : 0;
    const int hs = p.sel_heads == 1 ? 0 : plan.lists_g > 1 ? w.h0 : w.hkv;
    const int64_t at = (int64_t(w.b) * p.sel_rows + s) * p.sel_heads + hs;
    w.list = p.selected + at * p.sel_k;
    const int n = p.counts ? p.counts[at] : p.sel_k;
    w.list_size = n < 0 ? 0 : n > p.sel_k ? p.sel_k : n;
  }
  return w;
}

__device__ inline Work work_of(const Plan& plan, int64_t group, int block, int split) {
  const PagedDecode& p = plan.p;
  Work w = rows_of(plan, group, block);
  w.split = split;
  if (w.list) {
    w.end = w.list_size;
  } else {
    key_range(p, w.view, w.b, w.t0, w.t1, &w.begin, &w.end);
  }
  if (w.t0 >= w.view.rows || p.pages_in_pool <= 0) w.end = w.begin;
  w.chunk = split_size(w.end - w.begin, plan.splits);
  return w;
}

// Factor of the weighted sum and lse of a row whose weights, relative to exp(m), add up to l. The
// sink is counted here and nowhere else.
struct Closing {
  float gain, lse;
};
__device__ inline Closing close_row(const PagedDecode& p, bool exists, int h, float m, float l) {
  if (!exists) return {0.f, -INFINITY};
  float gain = 1.f;
  if (p.sink_logit && p.sink_logit[h] > -INFINITY) {
    const float top = fmaxf(m, p.sink_logit[h]);
    gain = ptx::exp2_fast((m - top) * kLog2e);
    l = l * gain + ptx::exp2_fast((p.sink_logit[h] - top) * kLog2e);
    m = top;
  }
  if (!(l > 0.f)) return {0.f, -INFINITY};
  return {gain / l, m + logf(l)};
}

// x * gain where a zero gain wins over infinities and NaN.
__device__ inline float weighed(float x, float gain) { return gain == 0.f ? 0.f : x * gain; }

__device__ inline float clean_score(float x) { return x == x ? fminf(x, FLT_MAX) : -INFINITY; }

// In place, rows [rows, D] that lie `stride` apart: the Walsh-Hadamard transform of blocks of the
// largest power of two that divides D, scaled to be its own inverse. Ends, as it begins, with a
// barrier.
__device__ inline void hadamard_rows(float* x, int rows, int D, int stride) {
  const int n = D & -D, half = D / 2;
  for (int h = 1; h < n; h *= 2) {
    __syncthreads();  // the last stage is written
    for (int i = threadIdx.x; i < rows * half; i += blockDim.x) {
      const int k = i % half;
      float* at = x + i / half * stride + k / h * 2 * h + k % h;
      const float a = at[0], b = at[h];
      at[0] = (a + b) * kRootHalf;
      at[h] = (a - b) * kRootHalf;
    }
  }
  __syncthreads();  // and so is this one
}

// Row of the score matrix: by query head, or by KV head when reduced.
__device__ inline float* score_row(const PagedDecode& p, int b, int t, int h) {
  const int heads = p.reduce == ScoreReduce::none ? p.Hq : p.Hkv;
  return p.scores + ((int64_t(b) * p.T + t) * heads + h) * p.score_len;
}

// Writes -inf to this split's share of the scores outside [w.begin, w.end), which no tile covers.
__device__ inline void fill_unseen(const Plan& plan, const Work& w) {
  const PagedDecode& p = plan.p;
  const bool none = p.reduce == ScoreReduce::none;
  const int64_t lo = w.begin < p.score_len ? w.begin : p.score_len;
  const int64_t hi = w.end < p.score_len ? w.end : p.score_len;
  const int64_t outside = p.score_len - (hi - lo);
  const int64_t first = outside * w.split / plan.splits,
                last = outside * (w.split + 1) / plan.splits;
  const int heads = none ? w.heads : 1;
  for (int r = 0; r < (w.t1 - w.t0) * heads; ++r) {
    float* row = score_row(p, w.b, w.t0 + r / heads, none ? w.h0 + r % heads : w.hkv);
    for (int64_t i = first + threadIdx.x; i < last; i += kThreads)
      row[i < lo ? i : i - lo + hi] = -INFINITY;
  }
}

// Writes a tile's raw scores, staged as tile[row * KT + column], one row per query or group.
// position(column) is -1 where no key is. Cleared scores hold -inf already, and of the parts that
// have a slot for one position only that which holds the token writes.
template <class Team, int KT, bool kCleared, class Position>
__device__ inline void write_scores(const PagedDecode& p, const Work& w, const float* tile,
                                    Position position) {
  const bool none = p.reduce == ScoreReduce::none;
  const int heads = none ? w.heads : 1, folded = none ? 1 : w.heads;
  for (int i = Team::rank(); i < (w.t1 - w.t0) * heads * KT; i += Team::kSize) {
    const int r = i / KT, key = position(i % KT);
    if (key < 0 || key >= p.score_len) continue;
    const float* x = tile + r * folded * KT + i % KT;
    float total = *x;
    for (int g = 1; g < folded; ++g)
      total = p.reduce == ScoreReduce::max ? fmaxf(total, x[g * KT]) : total + x[g * KT];
    if (kCleared && total == -INFINITY) continue;
    score_row(p, w.b, w.t0 + r / heads, none ? w.h0 + r % heads : w.hkv)[key] = total;
  }
}

}  // namespace
}  // namespace tokops::paged
