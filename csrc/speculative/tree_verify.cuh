// The rows of a request for one block of threads, and the kernels made of them; see
// tree_verify.walk.h.
#pragma once
#include "common/row_law.cuh"
#include "speculative/tree_verify.blocks.h"
#include "speculative/tree_verify.kseq.h"
#include "speculative/tree_verify.lantern.h"

namespace tokops {

// The other parts, each a file of its own because it takes long to compile.
void tree_verify_drawn(const TreeVerify& p, const Queue& q);
void tree_verify_block(const TreeVerify& p, const Queue& q);
void tree_verify_lossy(const TreeVerify& p, const Queue& q);

namespace {

struct VerifyShared {
  LawShared law;
  unsigned long long upper[kRhoBins + 2], lower[kRhoBins + 2];
};

// A row of logits, or of laws that are given, of type T.
template <class T, bool kGiven>
struct RowOf {
  const T* at = nullptr;
  RowOf() = default;
  __device__ RowOf(const TreeVerify& p, int b, int node) {
    const void* base = kGiven ? static_cast<const void*>(p.probs) : p.logits;
    at = static_cast<const T*>(base) + b * p.target_b + node * p.target_n;
  }
  __device__ static bool given() { return kGiven; }
  __device__ float value(int x) const { return to_float(at[x]); }
  __device__ float logit(int x) const { return sane_logit(value(x)); }
};

// The same where it is not known before what rows are.
struct AnyRow {
  const void* at = nullptr;
  DType dtype = DType::f32;
  bool law = false;
  AnyRow() = default;
  __device__ AnyRow(const TreeVerify& p, int b, int node)
      : dtype(p.dtype), law(p.logits == nullptr) {
    const void* base = law ? static_cast<const void*>(p.probs) : p.logits;
    const int64_t bytes = dtype == DType::f32 ? 4 : 2;
    at = static_cast<const char*>(base) + (b * p.target_b + node * p.target_n) * bytes;
  }
  __device__ bool given() const { return law; }
  __device__ float value(int x) const { return element_at(dtype, at, x); }
  __device__ float logit(int x) const { return sane_logit(value(x)); }
};

// One request's rows, one block; see tree_verify.walk.h. Weights are made anew from logits in every
// pass: a row is read a few times, from the L2 cache after the first.
template <class Source, int kBlocks>
struct BlockRows {
  const TreeVerify& p;
  VerifyShared& s;
  LawTeam<kBlocks> team;
  int b;
  Source row;
  RowLaw law;
  double row_mass = 1;
  unsigned long long weighed = 0;  // what weighing the row has summed and kept; 0 once it is gone
  int read = 0;

  __device__ BlockRows(const TreeVerify& p_, VerifyShared& s_, int b_)
      : p(p_), s(s_), team(s_.law, p_.V), b(b_) {}

  __device__ static bool leads() { return LawTeam<kBlocks>::leads(); }
  __device__ static void sync() { LawTeam<kBlocks>::sync(); }

  __device__ bool open(int node) {
    ++read;
    row = Source(p, b, node);
    weighed = 0;
    if (row.given()) return true;
    LawSettings set = p.settings;
    if (p.mode == Verify::lantern && set.temperature == 0) set = {1, 1, 0, 0};
    const Source from = row;
    const unsigned long long all = team.weigh(&law, set, [&](int x) { return from.logit(x); });
    row_mass = exact::mul(double(all), exact::kUnit);
    weighed = all;
    return all != 0;
  }
  __device__ float q(int x) const {
    return row.given() ? row.value(x) : weight(law, row.logit(x), x);
  }
  __device__ double mass() const { return row_mass; }

  __device__ bool open_draft(int r, int) const { return r >= 0 && r < p.M; }
  __device__ float p_at(int r, int x) const { return p.draft[b * p.draft_b + r * p.draft_m + x]; }
  __device__ static bool drawn(float, int) { return true; }
  __device__ static bool valid_rho(double, double, int) { return true; }

  __device__ int largest(int node) {
    ++read;
    const Source from(p, b, node);
    const Largest high = team.largest([&](int x) { return from.logit(x); });
    return high.key > kKeyOfMinusInf ? high.token : -1;
  }

  __device__ uint64_t row_total() {
    return weighed ? weighed : total([&](int x) { return q(x); });
  }
  template <class F>
  __device__ uint64_t total(const F& f) {
    weighed = 0;
    return team.sum_tiles([&](int x) -> unsigned long long { return exact::fixed(f(x)); });
  }
  template <class F>
  __device__ int find(uint64_t t, const F& f) {
    return team.find(t, [&](int x) -> unsigned long long { return exact::fixed(f(x)); });
  }
  __device__ uint64_t discount(int x, uint64_t w) {
    weighed = 0;
    team.discount(x, w);
    return w;
  }

  __device__ float* residual() const { return p.left + int64_t(b) * p.V; }
  template <class F>
  __device__ uint64_t put(const F& f) {
    float* r = residual();
    unsigned long long own = 0;
    __syncthreads();  // all have read what they need of the old one
    for (int x = threadIdx.x; x < p.V; x += kLawThreads) {
      r[x] = f(x, r[x]);
      own += exact::fixed(r[x]);
    }
    return team.sum(own);
  }

  __device__ uint8_t* marks() const { return p.marks + int64_t(b) * p.V; }
  __device__ bool marked(int x) const { return marks()[x] != 0; }
  __device__ void mark(int x, bool on) const {
    __syncthreads();
    if (leads()) marks()[x] = on;
    __syncthreads();
  }
  __device__ void add_mark(int x, int amount) const { marks()[x] = uint8_t(marks()[x] + amount); }

  template <class F>
  __device__ void each(int n, const F& f) const {
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += kLawThreads) f(j);
    __syncthreads();
  }
  // Every warp by itself, 32 at a time.
  template <class F>
  __device__ void within(int n, uint64_t limit, const F& f, int* count, uint64_t* sum) const {
    const int lane = threadIdx.x % 32;
    for (int j0 = 0; j0 < n; j0 += 32) {
      unsigned long long upto = j0 + lane < n ? exact::fixed(f(j0 + lane)) : 0;
      for (int o = 1; o < 32; o *= 2) {
        const unsigned long long other = __shfl_up_sync(kFullWarp, upto, o);
        if (lane >= o) upto += other;
      }
      const bool fits = j0 + lane < n && *sum + upto <= limit;
      const int taken = __popc(__ballot_sync(kFullWarp, fits));
      const unsigned long long more = __shfl_sync(kFullWarp, upto, taken > 0 ? taken - 1 : 0);
      if (taken > 0) *sum += more;
      *count += taken;
      if (taken < 32) return;
    }
  }

  __device__ void count_ratios(int r, double low, double step) {
    __syncthreads();
    for (int j = threadIdx.x; j < kRhoBins + 2; j += kLawThreads) s.upper[j] = s.lower[j] = 0;
    __syncthreads();
    for (int x = threadIdx.x; x < p.V; x += kLawThreads) {
      const float q_x = q(x), p_x = p_at(r, x);
      const int bin = ratio_bin(q_x, p_x, row_mass, low, step);
      if (p_x > 0) atomicAdd(&s.upper[bin], static_cast<unsigned long long>(exact::fixed(p_x)));
      if (q_x > 0) atomicAdd(&s.lower[bin], static_cast<unsigned long long>(exact::fixed(q_x)));
    }
    __syncthreads();
    if (threadIdx.x == 0)
      for (int j = 0; j <= kRhoBins; ++j) {
        s.lower[j + 1] += s.lower[j];
        s.upper[kRhoBins - j] += s.upper[kRhoBins - j + 1];
      }
    __syncthreads();
  }
  __device__ void ratio_masses(int j, uint64_t* above, uint64_t* below) const {
    *above = s.upper[j + 1];
    *below = s.lower[j];
  }
};

template <class Source, Part kPart, int kBlocks = 1>
__global__ void __launch_bounds__(kLawThreads) tree_verify_kernel(TreeVerify p) {
  __shared__ VerifyShared s;
  const int b = blockIdx.x / kBlocks;
  constexpr int kLine = 32;  // numbers that one prefetch brings
  if (int(threadIdx.x) * kLine < p.N) {
    const int64_t at = int64_t(b) * p.N + threadIdx.x * kLine;
    ptx::prefetch(p.tokens + at);
    ptx::prefetch(p.first_child + at);
    ptx::prefetch(p.next_sibling + at);
  }
  BlockRows<Source, kBlocks> rows(p, s, b);
  Walk<BlockRows<Source, kBlocks>, kPart>(p, rows, b).run();
  if (rows.leads()) p.rows_read[b] = rows.read;
  if constexpr (kBlocks > 1)
    rows.sync();  // no block leaves while others may read its shared memory
}

template <class Source, Part kPart>
void launch_walk(const TreeVerify& p, const Queue& q) {
  launch(tree_verify_kernel<Source, kPart>, dim3(unsigned(p.B)), dim3(kLawThreads), 0, q, p);
}

}  // namespace
}  // namespace tokops
