#include "kvcache/attention_mass.h"

#include "common/isa.h"
#include "kvcache/mass.h"

// A task adds the rows up over a block of positions that stays in the first cache; scores are read
// once, in order.
namespace tokops {
namespace {

constexpr int64_t kBlock = 1024;

// sum[0, n) += what one head of one row gives to its n positions.
void add_row(const float* scores, float lse, float softcap, int64_t n, float* sum) {
  const Vec base = splat(lse);
  int64_t l = 0;
  for (; l + Vec::width <= n; l += Vec::width)
    store(sum + l, load(sum + l) + mass_of(sane(load(scores + l)), base, softcap));
  if (l == n) return;
  float tail[Vec::width];
  store(tail, mass_of(sane(load_first(scores + l, int(n - l))), base, softcap));
  for (int i = 0; l + i < n; ++i) sum[l + i] += tail[i];
}

void mass_block(const AttentionMass& p, int64_t b, int64_t hkv, int64_t l0) {
  const int64_t n = p.L - l0 < kBlock ? p.L - l0 : kBlock;
  const int64_t rows = p.q_lens ? p.q_lens[b] : p.T, group = p.Hq / p.Hkv;
  float* out = p.mass + (b * p.Hkv + hkv) * p.L + l0;
  for (int64_t i = 0; i < n; ++i) out[i] = 0;
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t h = hkv * group; h < (hkv + 1) * group; ++h) {
      const float lse = p.lse[(b * p.T + t) * p.Hq + h];
      if (lse == -INFINITY) continue;  // a row that sees nothing
      add_row(p.scores + b * p.s_b + t * p.s_t + h * p.s_h + l0, lse, p.softcap, n, out);
    }
}

void attention_mass_copy(const AttentionMass& p, const Queue& q) {
  const int64_t blocks = (p.L + kBlock - 1) / kBlock;
  q.parallel(p.B * p.Hkv * blocks, 1, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t head = i / blocks;
      mass_block(p, head / p.Hkv, head % p.Hkv, i % blocks * kBlock);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(attention_mass, attention_mass_copy, AttentionMass)
