#include "common/row_law.cuh"
#include "sampling/sample.h"

namespace tokops {
namespace {

template <class T, bool kMasked>
struct LogitRow {
  const T* at;
  Bitmask mask;
  const int32_t* bits;

  __device__ LogitRow(const LawRows& p, int64_t row)
      : at(static_cast<const T*>(p.logits) + row * p.stride), mask(p.mask) {
    bits = kMasked ? bits_of_row(mask, row) : nullptr;
  }
  __device__ float operator()(int x) const {
    if (kMasked && !is_allowed(mask, bits, x)) return -INFINITY;
    return sane_logit(to_float(at[x]));
  }
};

template <class T, int kBlocks, bool kMasked>
__global__ void __launch_bounds__(kLawThreads) sample_kernel(Sample p) {
  __shared__ LawShared s;
  LawTeam<kBlocks> team(s, p.law.V);
  const int64_t row = blockIdx.x / kBlocks;
  const LogitRow<T, kMasked> logit(p.law, row);
  RowLaw r;
  const auto all = team.weigh(&r, settings_of(p.law, row), logit);
  const Stream random{p.seed, uint32_t(p.stream[row])};
  const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(p.slot), Use(p.use));
  int token = -1;
  if (all)
    token = team.find(multiply_high(bits, all), [&](int x) -> unsigned long long {
      return exact::fixed(weight(r, logit(x), x));
    });
  if (team.leads()) p.tokens[row] = token;
  team.sync();  // no block leaves while others may read its shared memory
}

template <class T, bool kMasked>
__global__ void __launch_bounds__(kLawThreads) law_kernel(LawOf p) {
  __shared__ LawShared s;
  LawTeam<1> team(s, p.law.V);
  const LogitRow<T, kMasked> logit(p.law, blockIdx.x);
  RowLaw r;
  const auto all = team.weigh(&r, settings_of(p.law, blockIdx.x), logit);
  const float scale = all ? scale_of(all) : 0.f;
  float* out = p.probs + int64_t(blockIdx.x) * p.law.V;
  for (int x = threadIdx.x; x < p.law.V; x += kLawThreads)
    out[x] = all ? exact::mul(weight(r, logit(x), x), scale) : 0.f;
}

__global__ void __launch_bounds__(kLawThreads) draw_kernel(Draw p) {
  __shared__ LawShared s;
  const int64_t row = blockIdx.x;
  const float* w = p.probs + row * p.stride;
  int32_t* out = p.tokens + row * p.count;
  LawTeam<1> team(s, p.V);
  unsigned long long all =
      team.sum_tiles([&](int x) -> unsigned long long { return exact::fixed(w[x]); });
  const Stream random{p.seed, uint32_t(p.stream[row])};
  for (int i = 0; i < p.count; ++i) {
    int token = -1;
    if (all) {
      const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(i), Use(p.use));
      token = team.find(multiply_high(bits, all), [&](int x) -> unsigned long long {
        if (!p.replace)
          for (int j = 0; j < i; ++j)
            if (out[j] == x) return 0;
        return exact::fixed(w[x]);
      });
    }
    const unsigned long long gone = token < 0 || p.replace ? 0 : exact::fixed(w[token]);
    if (threadIdx.x == 0) out[i] = token;
    if (gone) team.discount(token, gone);
    all -= gone;
    __syncthreads();  // out and tiles are written before the next draw reads them
  }
}

}  // namespace

void sample(const Sample& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.law.dtype, "sample", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool masked = p.law.mask.words != nullptr;
    const auto one = masked ? sample_kernel<T, 1, true> : sample_kernel<T, 1, false>;
    const auto cluster =
        masked ? sample_kernel<T, kClusterBlocks, true> : sample_kernel<T, kClusterBlocks, false>;
    const bool many = wants_cluster(reinterpret_cast<const void*>(cluster), p.law.rows, p.law.V);
    const unsigned blocks = many ? kClusterBlocks : 1;
    launch_as(Start::in_order, blocks, many ? cluster : one, dim3(unsigned(p.law.rows) * blocks),
              dim3(kLawThreads), 0, q, p);
  });
}

void law(const LawOf& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.law.dtype, "law", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(p.law.mask.words ? law_kernel<T, true> : law_kernel<T, false>,
           dim3(unsigned(p.law.rows)), dim3(kLawThreads), 0, q, p);
  });
}

void draw(const Draw& p, const Queue& q) {
  launch(draw_kernel, dim3(unsigned(p.rows)), dim3(kLawThreads), 0, q, p);
}

}  // namespace tokops
