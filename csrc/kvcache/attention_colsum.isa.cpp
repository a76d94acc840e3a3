#include "kvcache/attention_colsum.h"

#include <math.h>

#include "common/isa.h"
#include "kvcache/mass.h"

// Both passes are one product: a block of vectors that stay, packed so that lanes are vectors,
// against vectors that stream by. The sums want keys in the lanes and rows streaming, the
// normalisers rows in the lanes and keys streaming; either way nothing is added up across lanes and
// no two tasks write one number.
namespace tokops {
namespace {

constexpr int kBlock = 128;  // vectors that stay in a task; fixed, so that threads change nothing
constexpr int kStream = 48;  // vectors that stream by at a time
constexpr int kPanel = 2 * Vec::width;
constexpr int kMaxDim = 256;
#if defined(__AVX512F__)
constexpr int kRows = 12;  // streaming vectors whose products fit the registers, by two of lanes
#else
constexpr int kRows = 6;
#endif
static_assert(kBlock % kPanel == 0 && kStream % kRows == 0);

// What a task holds: the block, by panels of [D][kPanel], what streams by, and its products with a
// panel.
struct Scratch {
  alignas(64) float block[kBlock * kMaxDim];
  alignas(64) float stream[kStream * kMaxDim];
  alignas(64) float s[kStream * kPanel];
};

// One (sequence, KV head): where its vectors stand and what sees what.
template <class T>
struct Head {
  const AttentionColsum& p;
  int b, hkv, group, rows, past, start;

  Head(const AttentionColsum& p, int64_t i)
      : p(p),
        b(int(i / p.Hkv)),
        hkv(int(i % p.Hkv)),
        group(p.Hq / p.Hkv),
        rows((p.T - p.first_row) * group),
        past(p.L - p.T + p.first_row),
        start(p.starts ? p.starts[b] : 0) {}

  int position(int r) const { return past + r / group; }
  // The first folded row at `position` or behind it.
  int row_at(int position) const { return position > past ? (position - past) * group : 0; }
  float* lse(int r) const {
    return p.lse + (int64_t(b) * p.T + p.first_row + r / group) * p.Hq + hkv * group + r % group;
  }
  const T* query(int r) const {
    return static_cast<const T*>(p.q) + b * p.q_b + (p.first_row + r / group) * p.q_t +
           (hkv * group + r % group) * p.q_h;
  }
  const T* key(int j) const {
    return static_cast<const T*>(p.k) + b * p.k_b + j * p.k_l + hkv * p.k_h;
  }
};

int least(int a, int b) { return a < b ? a : b; }
int most(int a, int b) { return a > b ? a : b; }

// block = n vectors times `scale`, transposed into panels; zeros up to the end of the last panel.
template <class At>
void pack(const At& at, int n, int d, float scale, float* block) {
  for (int i = 0; i < (n + kPanel - 1) / kPanel * kPanel; ++i) {
    float* to = block + i / kPanel * kPanel * d + i % kPanel;
    if (i >= n) {
      for (int c = 0; c < d; ++c) to[c * kPanel] = 0;
      continue;
    }
    const auto* x = at(i);
    for (int c = 0; c < d; ++c) to[c * kPanel] = scale * to_float(x[c]);
  }
}

// The same in rows; zeros up to a multiple of kRows.
template <class At>
void copy_rows(const At& at, int n, int d, float scale, float* rows) {
  const Vec factor = splat(scale);
  for (int i = 0; i < n; ++i) {
    const auto* x = at(i);
    float* to = rows + i * d;
    int c = 0;
    for (; c + Vec::width <= d; c += Vec::width) store(to + c, load(x + c) * factor);
    for (; c < d; ++c) to[c] = to_float(x[c]) * scale;
  }
  for (int i = n * d; i < (n + kRows - 1) / kRows * kRows * d; ++i) rows[i] = 0;
}

// s[r][lane] = stream_r . panel_lane for n vectors of the stream, rounded up to kRows.
void products(const float* panel, const float* stream, int n, int d, float* s) {
  for (int r = 0; r < n; r += kRows, stream += kRows * d, s += kRows * kPanel) {
    Vec sum[kRows][2];
    for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = zero();
    for (int c = 0; c < d; ++c) {
      const Vec x0 = load(panel + c * kPanel), x1 = load(panel + c * kPanel + Vec::width);
      for (int i = 0; i < kRows; ++i) {
        const Vec y = splat(stream[i * d + c]);
        sum[i][0] = fma(y, x0, sum[i][0]);
        sum[i][1] = fma(y, x1, sum[i][1]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      store(s + i * kPanel, sum[i][0]);
      store(s + i * kPanel + Vec::width, sum[i][1]);
    }
  }
}

// 0, 1, 2, ... in the lanes.
Vec lanes() {
  float x[Vec::width];
  for (int i = 0; i < Vec::width; ++i) x[i] = float(i);
  return load(x);
}

// sum[lane] += what n rows of the stream give to the panel's keys, the first of which is `key`.
template <class T>
void add_columns(const Head<T>& h, const float* s, int r0, int n, int key, float* sum) {
  const Vec unseen = splat(-INFINITY), lane = lanes();
  for (int v = 0; v < kPanel; v += Vec::width) {
    const float first = float(h.start - key - v);
    Vec total = zero();
    for (int r = 0; r < n; ++r) {
      const float lse = *h.lse(r0 + r);
      if (lse == -INFINITY) continue;
      const int last = h.position(r0 + r) - key - v;  // lanes up to it are seen
      Vec x = sane(load(s + r * kPanel + v));
      if (last < Vec::width - 1) x = select_less(lane, splat(float(last + 1)), x, unseen);
      if (first > 0) x = select_less(lane, splat(first), unseen, x);
      total = total + mass_of(x, splat(lse), h.p.softcap);
    }
    store(sum + v, load(sum + v) + total);
  }
}

// Sums of the keys [k0, k0 + kBlock), over the rows that see any of them.
template <class T>
void sum_block(const Head<T>& h, int k0, Scratch& x) {
  const AttentionColsum& p = h.p;
  const int n = least(kBlock, p.L - k0);
  float sum[kBlock] = {};
  const int begin = k0 + n > h.start ? h.row_at(most(k0, h.start)) : h.rows;
  if (begin < h.rows) pack([&](int i) { return h.key(k0 + i); }, n, p.D, 1.f, x.block);
  for (int r0 = begin; r0 < h.rows; r0 += kStream) {
    const int rows = least(kStream, h.rows - r0), seen = h.position(r0 + rows - 1) + 1 - k0;
    copy_rows([&](int i) { return h.query(r0 + i); }, rows, p.D, p.scale, x.stream);
    for (int i = 0; i < least(n, seen); i += kPanel) {
      products(x.block + i * p.D, x.stream, rows, p.D, x.s);
      add_columns(h, x.s, r0, rows, k0 + i, sum + i);
    }
  }
  float* to = p.acc + (int64_t(h.b) * p.Hkv + h.hkv) * p.L + k0;
  for (int i = 0; i < n; ++i) to[i] = sum[i];
}

// Folds n keys of the stream, the first of which is `key`, into the panel's running maxima and
// sums.
template <class T>
void fold_columns(const Head<T>& h, const float* s, int key, int n, const int* pos, float* tops,
                  float* sums) {
  const Vec unseen = splat(-INFINITY);
  for (int v = 0; v < kPanel; v += Vec::width) {
    float last[Vec::width];
    for (int i = 0; i < Vec::width; ++i) last[i] = float(pos[v + i] - key);
    const Vec reach = load(last), before = load(tops + v);
    Vec x[kStream], top = before;
    for (int j = 0; j < n; ++j) {
      const Vec y = sane(load(s + j * kPanel + v));
      x[j] =
          select_less(reach, splat(float(j)), unseen, h.p.softcap > 0 ? bend(y, h.p.softcap) : y);
      top = max(top, x[j]);
    }
    const Vec base = select_less(top, splat(-3.402823466e38f), zero(), top);
    Vec sum = load(sums + v) * exp_nonpositive(before - base);
    for (int j = 0; j < n; ++j) sum = sum + exp_nonpositive(x[j] - base);
    store(tops + v, top);
    store(sums + v, sum);
  }
}

// Normalisers of the folded rows [r0, r0 + kBlock).
template <class T>
void normalise_block(const Head<T>& h, int r0, Scratch& x) {
  const AttentionColsum& p = h.p;
  const int n = least(kBlock, h.rows - r0);
  int pos[kBlock];
  float tops[kBlock], sums[kBlock] = {};
  for (int i = 0; i < kBlock; ++i) {
    pos[i] = i < n ? h.position(r0 + i) : -1;
    tops[i] = -INFINITY;
  }
  pack([&](int i) { return h.query(r0 + i); }, n, p.D, p.scale, x.block);
  for (int k0 = h.start; k0 <= pos[n - 1]; k0 += kStream) {
    const int keys = least(kStream, pos[n - 1] + 1 - k0);
    copy_rows([&](int i) { return h.key(k0 + i); }, keys, p.D, 1.f, x.stream);
    for (int i = 0; i < n; i += kPanel) {
      if (pos[least(i + kPanel, n) - 1] < k0) continue;
      products(x.block + i * p.D, x.stream, keys, p.D, x.s);
      fold_columns(h, x.s, k0, keys, pos + i, tops + i, sums + i);
    }
  }
  for (int i = 0; i < n; ++i) *h.lse(r0 + i) = sums[i] > 0 ? tops[i] + logf(sums[i]) : -INFINITY;
}

// f(Head, block) for all blocks of `kBlock` of n, over the heads. The first and the last block of a
// head take turns, since one has little to do where the other has much.
template <class T, class F>
void each_block(const AttentionColsum& p, const Queue& q, int n, const F& f) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  q.parallel(int64_t(p.B) * p.Hkv * blocks, 1, [&](int64_t i0, int64_t i1) {
    Scratch x;
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t at = i % blocks, block = at % 2 ? blocks - 1 - at / 2 : at / 2;
      f(Head<T>(p, i / blocks), int(block) * kBlock, x);
    }
  });
}

template <class T>
void colsum(const AttentionColsum& p, const Queue& q) {
  if (p.find_lse) {
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t i = 0; i < int64_t(p.first_row) * p.Hq; ++i)
        p.lse[b * p.T * p.Hq + i] = -INFINITY;
    each_block<T>(p, q, (p.T - p.first_row) * (p.Hq / p.Hkv),
                  [](const Head<T>& h, int r0, Scratch& x) { normalise_block(h, r0, x); });
  }
  each_block<T>(p, q, p.L, [](const Head<T>& h, int k0, Scratch& x) { sum_block(h, k0, x); });
}

void attention_colsum_copy(const AttentionColsum& p, const Queue& q) {
  switch (p.dtype) {
    case DType::f32:
      return colsum<float>(p, q);
    case DType::bf16:
      return colsum<bf16>(p, q);
    case DType::f16:
      return colsum<f16>(p, q);
  }
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(attention_colsum, attention_colsum_copy, AttentionColsum)
