#include "common/isa.h"
#include "common/row_law_cpu.h"
#include "speculative/tree_verify.blocks.h"
#include "speculative/tree_verify.kseq.h"
#include "speculative/tree_verify.lantern.h"

namespace tokops {
namespace {

constexpr double kMassError = 1e-3;  // a law that is off by more is refused

// One request's rows; see tree_verify.walk.h. Weights lie in memory, so that passes are plain
// loops.
struct HostRows {
  const TreeVerify& p;
  int b;
  RowSpace space;
  BlockSums sums;
  const float* row = nullptr;
  double row_mass = 1;
  int read = 0;
  uint64_t upper[kRhoBins + 2], lower[kRhoBins + 2];

  HostRows(const TreeVerify& p_, int b_, float* room) : p(p_), b(b_), space(room, p_.V) {}

  static bool leads() { return true; }
  static void sync() {}

  void fault(Fault what, int node) const {
    if (p.faults[2 * b] != int32_t(Fault::none)) return;
    p.faults[2 * b] = int32_t(what);
    p.faults[2 * b + 1] = node;
  }

  int64_t at(int node) const { return b * p.target_b + node * p.target_n; }
  void load(int node) {
    ++read;
    const int64_t bytes = p.dtype == DType::f32 ? 4 : 2;
    load_logits(static_cast<const char*>(p.logits) + at(node) * bytes, p.dtype, p.V, space.row);
  }

  bool is_law(const float* w) const {
    bool bad = false;  // negative or NaN
    for (int x = 0; x < p.V; ++x) bad |= !(w[x] >= 0);
    const double mass = exact::mul(double(sum_fixed(w, p.V)), exact::kUnit);
    return !bad && std::fabs(mass - 1) <= kMassError;
  }

  bool open(int node) {
    if (!p.logits) {
      ++read;
      row = p.probs + at(node);
      row_mass = 1;
      const bool ok = is_law(row);
      if (!ok) fault(Fault::target_mass, node);
      return ok;
    }
    load(node);
    row = space.row;
    LawSettings set = p.settings;
    if (p.mode == Verify::lantern && set.temperature == 0) set = {1, 1, 0, 0};
    const uint64_t all = weigh_row(space, p.V, set);
    row_mass = exact::mul(double(all), exact::kUnit);
    if (all == 0) fault(Fault::empty_target, node);
    return all != 0;
  }
  float q(int x) const { return row[x]; }
  double mass() const { return row_mass; }

  bool open_draft(int r, int node) const {
    const bool ok = r >= 0 && r < p.M && is_law(draft(r));
    if (!ok) fault(Fault::draft_mass, node);
    return ok;
  }
  const float* draft(int r) const { return p.draft + b * p.draft_b + r * p.draft_m; }
  float p_at(int r, int x) const { return draft(r)[x]; }
  bool drawn(float p_x, int node) const {
    if (!(p_x > 0)) fault(Fault::zero_draft, node);
    return p_x > 0;
  }
  bool valid_rho(double c, double rho, int node) const {
    const bool ok = !p.rho || (rho >= 1 && c <= rho * (1 + 1e-6));
    if (!ok) fault(Fault::low_rho, node);
    return ok;
  }

  int largest(int node) {
    const float* x = p.probs + at(node);
    if (p.logits) {
      load(node);
      x = space.row;
    } else {
      ++read;
    }
    int best = -1;
    float high = -INFINITY;
    for (int i = 0; i < p.V; ++i) {
      if (!(x[i] > high)) continue;
      high = x[i];
      best = i;
    }
    if (best < 0) fault(Fault::empty_target, node);
    return best;
  }

  uint64_t row_total() {
    return total([&](int x) { return row[x]; });
  }
  template <class F>
  uint64_t total(const F& f) {
    return sums.fill(p.V, f);
  }
  template <class F>
  int find(uint64_t t, const F& f) const {
    return sums.find(t, f);
  }
  uint64_t discount(int x, uint64_t w) {
    sums.at[x / kSumBlock] -= w;
    return w;
  }

  float* residual() const { return p.left + int64_t(b) * p.V; }
  template <class F>
  uint64_t put(const F& f) {
    float* r = residual();
    for (int x = 0; x < p.V; ++x) r[x] = f(x, r[x]);
    return sum_fixed(r, p.V);
  }

  uint8_t* marks() const { return p.marks + int64_t(b) * p.V; }
  bool marked(int x) const { return marks()[x] != 0; }
  void mark(int x, bool on) const { marks()[x] = on; }
  void add_mark(int x, int amount) const { marks()[x] = uint8_t(marks()[x] + amount); }

  template <class F>
  void each(int n, const F& f) const {
    for (int j = 0; j < n; ++j) f(j);
  }
  template <class F>
  void within(int n, uint64_t limit, const F& f, int* count, uint64_t* sum) const {
    for (int j = 0; j < n; ++j) {
      const uint64_t more = *sum + exact::fixed(f(j));
      if (more > limit) return;
      *sum = more;
      *count = j + 1;
    }
  }

  void count_ratios(int r, double low, double step) {
    for (int j = 0; j < kRhoBins + 2; ++j) upper[j] = lower[j] = 0;
    const float* d = draft(r);
    for (int x = 0; x < p.V; ++x) {
      const int bin = ratio_bin(row[x], d[x], row_mass, low, step);
      upper[bin] += exact::fixed(d[x]);
      lower[bin] += exact::fixed(row[x]);
    }
    for (int j = 0; j <= kRhoBins; ++j) {
      lower[j + 1] += lower[j];
      upper[kRhoBins - j] += upper[kRhoBins - j + 1];
    }
  }
  // Mass of the draft at or above edge j, of the target below it.
  void ratio_masses(int j, uint64_t* above, uint64_t* below) const {
    *above = upper[j + 1];
    *below = lower[j];
  }
};

void tree_verify_copy(const TreeVerify& p, const Queue& q) {
  const int64_t per = (p.B + p.slots - 1) / p.slots;
  q.parallel(p.slots, 1, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t b = s * per; b < (s + 1) * per && b < p.B; ++b) {
        HostRows rows(p, int(b), p.workspace + s * kRowFloats * p.V);
        Walk<HostRows>(p, rows, int(b)).run();
        p.rows_read[b] = rows.read;
      }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(tree_verify, tree_verify_copy, TreeVerify)
