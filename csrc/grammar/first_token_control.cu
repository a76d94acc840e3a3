#include "common/row_law.cuh"
#include "grammar/first_token_control.h"

namespace tokops {
namespace {

// One block per row: its logits are read for the largest and for the sum.
template <class T>
__global__ void __launch_bounds__(kLawThreads) first_token_kernel(FirstTokenControl p) {
  __shared__ LawShared s;
  __shared__ float own_logit[kMostControls], score[kMostControls];
  LawTeam<1> team(s, p.V);
  const int64_t row = blockIdx.x;
  const T* from = static_cast<const T*>(p.logits) + row * p.stride;
  const auto logit = [&](int x) { return sane_logit(to_float(from[x])); };
  const int32_t top = team.largest(logit).key;
  RowLaw r;
  r.inverse = __fdiv_rn(1.f, p.temperature);
  unsigned long long own = 0;
  if (top > kKeyOfMinusInf) {
    r.top = exact::float_of(top >= 0 ? top : (-top) | INT32_MIN);
    for (int x = threadIdx.x; x < p.V; x += kLawThreads)
      own += exact::fixed(raw_weight(r, logit(x)));
  }
  const uint64_t sum = team.sum(own);
  if (int(threadIdx.x) < p.count) {
    const int32_t id = p.ids[row * p.count + threadIdx.x];
    const bool there = id >= 0 && id < p.V;
    const float x = own_logit[threadIdx.x] = there ? logit(id) : -INFINITY;
    score[threadIdx.x] = p.score[row * p.count + threadIdx.x] =
        there ? control_score(r, x, sum) : 0.f;
  }
  __syncthreads();
  if (threadIdx.x == 0) p.next[row] = controlled_token(p, row, own_logit, score);
}

}  // namespace

void first_token_control(const FirstTokenControl& p, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "first_token_control", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(first_token_kernel<T>, dim3(unsigned(p.B)), dim3(kLawThreads), 0, q, p);
  });
}

}  // namespace tokops
