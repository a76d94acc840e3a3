#include "sampling/gumbel_topm.h"

#include "common/isa.h"
#include "sampling/masked_rows.h"

namespace tokops {
namespace {

constexpr int kBlock = 1024;  // tokens that are worked on at a time

// The tokens that came first so far, in order.
struct Arrivals {
  float keys[kMostDrawn], logits[kMostDrawn];
  int32_t ids[kMostDrawn];
  int count = 0;

  float least(int m) const { return count < m ? -INFINITY : keys[m - 1]; }

  // A key that is larger than least(m); it comes after those that are equal to it.
  void add(float key, float logit, int32_t id, int m) {
    int at = count < m ? count++ : m - 1;
    for (; at > 0 && keys[at - 1] < key; --at) {
      keys[at] = keys[at - 1];
      logits[at] = logits[at - 1];
      ids[at] = ids[at - 1];
    }
    keys[at] = key;
    logits[at] = logit;
    ids[at] = id;
  }
};

bool is_excluded(const GumbelTopm& p, int64_t row, int32_t id) {
  for (int i = 0; i < p.excluded; ++i)
    if (p.exclude[row * p.excluded + i] == id) return true;
  return false;
}

// Keys of tokens first..first + n; first is a multiple of 4.
void race_keys(const GumbelTopm& p, int64_t row, int first, int n, const float* logits,
               float* keys) {
  uint32_t words[kBlock];
  for (int i = 0; i < n; i += 4) {
    const Words w = race_words(p, row, (first + i) / 4);
    std::memcpy(words + i, w.at, sizeof w.at);
  }
  for (int i = 0; i < n; ++i) keys[i] = race_key(logits[i], words[i]);
}

void race_row(const GumbelTopm& p, int64_t row) {
  const char* from =
      static_cast<const char*>(p.logits) + row * p.stride * (p.dtype == DType::f32 ? 4 : 2);
  const int32_t* bits = bits_of_row(p.mask, row);
  float logits[kBlock], other[kBlock];
  RowLaw r;
  r.top = -INFINITY;
  for (int x = 0; x < p.V; x += kBlock) {
    const int n = x + kBlock < p.V ? kBlock : p.V - x;
    load_allowed(from, p.dtype, p.mask, bits, x, n, logits);
    const float top = largest_of(logits, n);
    r.top = top > r.top ? top : r.top;
  }
  Arrivals first;
  uint64_t sum = 0;
  for (int x = 0; x < p.V && r.top > -INFINITY; x += kBlock) {
    const int n = x + kBlock < p.V ? kBlock : p.V - x;
    load_allowed(from, p.dtype, p.mask, bits, x, n, logits);
    for (int i = 0; i < n; ++i) other[i] = raw_weight(r, logits[i]);
    sum += sum_fixed(other, n);
    race_keys(p, row, x, n, logits, other);
    for (int i = 0; i < n; ++i)
      if (other[i] > first.least(p.m) && !is_excluded(p, row, x + i))
        first.add(other[i], logits[i], x + i, p.m);
  }
  const float logz = logz_of(r.top, sum);
  p.logz[row] = logz;
  for (int i = 0; i < p.m; ++i) {
    const bool there = i < first.count;
    p.ids[row * p.m + i] = there ? first.ids[i] : -1;
    p.logp[row * p.m + i] = there ? exact::sub(first.logits[i], logz) : -INFINITY;
  }
}

void gumbel_topm_copy(const GumbelTopm& p, const Queue& q) {
  q.parallel(p.rows, 1, [&](int64_t r0, int64_t r1) {
    for (int64_t row = r0; row < r1; ++row) race_row(p, row);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(gumbel_topm, gumbel_topm_copy, GumbelTopm)
