#include "kvcache/attention_mass.h"
#include "kvcache/mass.cuh"

namespace tokops {
namespace {

constexpr int kThreads = 256;

// One thread per position of a KV head: adds up its group's scores there over all rows, each read
// once.
__global__ void attention_mass_kernel(AttentionMass p, int64_t blocks) {
  const int64_t at = blockIdx.x / blocks, l = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (l >= p.L) return;
  const int64_t b = at / p.Hkv, hkv = at % p.Hkv;
  const int64_t rows = p.q_lens ? p.q_lens[b] : p.T, group = p.Hq / p.Hkv;
  float sum = 0.f;
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t h = hkv * group; h < (hkv + 1) * group; ++h) {
      const float lse = p.lse[(b * p.T + t) * p.Hq + h];
      if (lse != -INFINITY)
        sum += mass_of(sane(p.scores[b * p.s_b + t * p.s_t + h * p.s_h + l]), lse, p.softcap);
    }
  p.mass[at * p.L + l] = sum;
}

}  // namespace

void attention_mass(const AttentionMass& p, const Queue& q) {
  const int64_t blocks = (p.L + kThreads - 1) / kThreads;
  launch(attention_mass_kernel, dim3(unsigned(p.B * p.Hkv * blocks)), dim3(kThreads), 0, q, p,
         blocks);
}

}  // namespace tokops
