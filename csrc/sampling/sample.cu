#include "common/row_law.cuh"
#include "sampling/sample.h"

namespace tokops {
namespace {

template <class T>
struct LogitRow {
  const T* at;
  __device__ float operator()(int x) const { return sane_logit(to_float(at[x])); }
};

template <class T>
__device__ LogitRow<T> row_of(const LawRows& p) {
  return {static_cast<const T*>(p.logits) + int64_t(blockIdx.x) * p.stride};
}

template <class T>
__global__ void __launch_bounds__(kLawThreads) sample_kernel(Sample p) {
  __shared__ LawShared s;
  const int64_t row = blockIdx.x;
  const LogitRow<T> logit = row_of<T>(p.law);
  RowLaw r;
  const auto all = weigh_row(s, &r, p.law.V, settings_of(p.law, row), logit);
  const Stream random{p.seed, uint32_t(p.stream[row])};
  const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(p.slot), Use(p.use));
  int token = -1;
  if (all)
    token = find_token(s, p.law.V, multiply_high(bits, all), [&](int x) -> unsigned long long {
      return exact::fixed(weight(r, logit(x), x));
    });
  if (threadIdx.x == 0) p.tokens[row] = token;
}

template <class T>
__global__ void __launch_bounds__(kLawThreads) law_kernel(LawOf p) {
  __shared__ LawShared s;
  const LogitRow<T> logit = row_of<T>(p.law);
  RowLaw r;
  const auto all = weigh_row(s, &r, p.law.V, settings_of(p.law, blockIdx.x), logit);
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
  unsigned long long all =
      sum_tiles(s, p.V, [&](int x) -> unsigned long long { return exact::fixed(w[x]); });
  const Stream random{p.seed, uint32_t(p.stream[row])};
  for (int i = 0; i < p.count; ++i) {
    int token = -1;
    if (all) {
      const uint64_t bits = random.bits(uint32_t(p.position[row]), uint32_t(i), Use(p.use));
      token = find_token(s, p.V, multiply_high(bits, all), [&](int x) -> unsigned long long {
        if (!p.replace)
          for (int j = 0; j < i; ++j)
            if (out[j] == x) return 0;
        return exact::fixed(w[x]);
      });
    }
    const unsigned long long gone = token < 0 || p.replace ? 0 : exact::fixed(w[token]);
    if (threadIdx.x == 0) {
      out[i] = token;
      if (gone) s.tiles[token / kSumTile] -= gone;
    }
    all -= gone;
    __syncthreads();  // out and tiles are written before the next draw reads them
  }
}

}  // namespace

void sample(const Sample& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.law.dtype, "sample", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(sample_kernel<T>, dim3(unsigned(p.law.rows)), dim3(kLawThreads), 0, q, p);
  });
}

void law(const LawOf& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.law.dtype, "law", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(law_kernel<T>, dim3(unsigned(p.law.rows)), dim3(kLawThreads), 0, q, p);
  });
}

void draw(const Draw& p, const Queue& q) {
  launch(draw_kernel, dim3(unsigned(p.rows)), dim3(kLawThreads), 0, q, p);
}

}  // namespace tokops
