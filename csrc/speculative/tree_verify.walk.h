// The walk itself, for CPU and CUDA. An Engine reads rows and sums them:
//
//   bool open(node)          prepares the target's row; false if it holds nothing (a fault is
//   noted) float q(x)               its weight of token x; mass() is what the weights sum to float
//   p_at(row, x)       the draft's probability uint64_t total(f)        sum of fixed(f(x)) over all
//   tokens, kept in parts for find int find(t, f)           the first token whose running sum of
//   what total summed exceeds t uint64_t discount(x, w)  takes w from the parts at x int
//   largest(node)        the most likely token, -1 if there is none; closes the row that is open
//   float* residual()        V floats; read and written by put(f): residual[x] = f(x, residual[x])
//   bool open_draft(row, node), drawn(p_x, node), valid_rho(c, rho, node): checks, where there are
//   any void count_ratios(row, low, step), ratio_masses(j, &upper, &lower): see ratio_bin void
//   within(n, limit, f, &count, &sum)   the longest prefix of f(0..n) that sums to at most limit
//   void each(n, f)          f(j) for all j below n
//   bool marked(x), mark(x, on), add_mark(x, amount)
//   bool leads()             whether this thread writes single values; sync() makes them seen
//
// On CUDA all threads of a block run the walk and get the same results.
#pragma once
#include "speculative/tree_verify.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

constexpr int kMostDrafts = 64;  // of mode kseq
constexpr int kRhoBins = 256;

// How many of the edges low + step * j, j 0..256, the ratio q / (m * p) reaches.
TOKOPS_HD int ratio_bin(float q, float p, double m, double low, double step) {
  if (!(p > 0.f)) return kRhoBins + 1;
  const auto reaches = [&](int j) {
    const double edge = exact::add(low, exact::mul(step, double(j)));
    return double(q) >= exact::mul(exact::mul(edge, m), double(p));
  };
  const double guess = (double(q) / exact::mul(m, double(p)) - low) / step;
  int j = guess > 0 ? guess < kRhoBins ? int(guess) : kRhoBins : 0;
  while (j <= kRhoBins && reaches(j)) ++j;
  while (j > 0 && !reaches(j - 1)) --j;
  return j;
}

// What a walk is built for: on CUDA every part is a kernel of its own.
enum class Part { all, simple, drawn, other };
TOKOPS_HD Part part_of(Verify mode) {
  if (mode == Verify::greedy || mode == Verify::target_only) return Part::simple;
  const bool drawn =
      mode == Verify::rrs || mode == Verify::rrs_wo || mode == Verify::greedy_plus_one;
  return drawn ? Part::drawn : Part::other;
}

template <class Engine, Part kPart = Part::all>
struct Walk {
  const TreeVerify& p;
  Engine& e;
  int b, nodes;
  Stream random;
  uint32_t first_position;
  int cur = 0, depth = 0;

  TOKOPS_HD Walk(const TreeVerify& p_, Engine& e_, int b_)
      : p(p_), e(e_), b(b_), nodes(p_.N), random{p_.seed, uint32_t(p_.stream[b_])} {
    first_position = uint32_t(p.position[b]);
    if (p.n_nodes) nodes = p.n_nodes[b] < p.N ? p.n_nodes[b] : p.N;
  }

  // ---- The tree.

  // A link, if it leads to a later node that is there: no links make the walk run in circles.
  TOKOPS_HD int link(const int32_t* links, int node) const {
    const int to = links[int64_t(b) * p.N + node];
    return to > node && to < nodes ? to : -1;
  }
  TOKOPS_HD int first(int node) const { return link(p.first_child, node); }
  TOKOPS_HD int next(int node) const { return link(p.next_sibling, node); }
  TOKOPS_HD int parent(int node) const { return p.parents[int64_t(b) * p.N + node]; }
  // Ids outside the vocabulary, which only a device that does not check meets, read its ends.
  TOKOPS_HD int token(int node) const {
    const int x = p.tokens[int64_t(b) * p.N + node];
    return x < 0 ? 0 : x < p.V ? x : p.V - 1;
  }
  TOKOPS_HD int draft_row(int node) const { return p.draft_rows[int64_t(b) * p.N + node]; }
  TOKOPS_HD int child_with(int node, int x) const {
    int c = first(node);
    while (c >= 0 && token(c) != x) c = next(c);
    return c;
  }
  // Whether a sibling before `end` has token x.
  TOKOPS_HD bool tried(int node, int end, int x) const {
    for (int c = first(node); c != end; c = next(c))
      if (token(c) == x) return true;
    return false;
  }

  // ---- Results.

  TOKOPS_HD void begin() const {
    if (e.leads())
      for (int j = 0; j < p.columns; ++j)
        p.out_tokens[int64_t(b) * p.columns + j] = p.accept_node[int64_t(b) * p.columns + j] = -1;
    e.sync();
    if (e.leads()) p.accept_node[int64_t(b) * p.columns] = 0;
  }
  // Columns may be too few only on a device that does not check.
  TOKOPS_HD void accept(int node) {
    if (e.leads() && depth + 1 < p.columns) {
      p.out_tokens[int64_t(b) * p.columns + depth] = token(node);
      p.accept_node[int64_t(b) * p.columns + depth + 1] = node;
    }
    ++depth;
    cur = node;
  }
  TOKOPS_HD void emit(int x) const {
    if (!e.leads()) return;
    if (depth < p.columns) p.out_tokens[int64_t(b) * p.columns + depth] = x;
    p.accept_len[b] = depth;
  }

  // ---- Random numbers.

  TOKOPS_HD double coin(int slot) const {
    return random.uniform(first_position + uint32_t(depth), uint32_t(slot), Use::accept);
  }
  template <class F>
  TOKOPS_HD int draw(uint64_t total, Use use, const F& f) const {
    const uint64_t bits = random.bits(first_position + uint32_t(depth), 0, use);
    return e.find(multiply_high(bits, total), f);
  }
  // A token from the whole row that is open; -1 if it holds nothing.
  TOKOPS_HD int draw_target(Use use) const {
    const auto f = [&](int x) { return e.q(x); };
    const uint64_t total = e.total(f);
    return total ? draw(total, use, f) : -1;
  }

  TOKOPS_HD static float subtracted(float r, float c, float p_x) {
    const float left = exact::sub(r, exact::mul(c, p_x));
    return left > 0.f ? left : 0.f;
  }
  // u * p * m < r * s, from left to right.
  TOKOPS_HD static bool passes(double u, double p_x, double m, double r, double s) {
    return exact::mul(exact::mul(u, p_x), m) < exact::mul(r, s);
  }

  // After a rejection that was certain not to happen, up to rounding.
  TOKOPS_HD int fall_back(int child) const {
    if (e.q(token(child)) > 0.f) return child;
    emit(draw_target(Use::final_token));
    return -1;
  }

  // ---- Modes that look at one level at a time: the accepted child, or -1 once a token is emitted.

  TOKOPS_HD int greedy() const {
    const int x = e.largest(cur), child = child_with(cur, x);
    if (child < 0) emit(x);
    return child;
  }

  TOKOPS_HD int plain_match() const {
    const int x = draw_target(Use::plain), child = child_with(cur, x);
    if (child < 0) emit(x);
    return child;
  }

  TOKOPS_HD int stop() const {
    emit(-1);
    return -1;
  }

  TOKOPS_HD int target_only() const {
    const double bar = exact::mul(coin(0), e.mass());
    double sum = 0;
    int last = -1;
    for (int c = first(cur); c >= 0; c = next(c)) {
      sum = exact::add(sum, double(e.q(token(c))));
      if (bar < sum) return c;
      last = c;
    }
    uint64_t total = e.total([&](int x) { return e.q(x); });
    for (int c = first(cur); c >= 0; c = next(c))
      if (!tried(cur, c, token(c))) total -= e.discount(token(c), exact::fixed(e.q(token(c))));
    if (total == 0) return fall_back(last);
    emit(draw(total, Use::final_token,
              [&](int x) { return child_with(cur, x) >= 0 ? 0.f : e.q(x); }));
    return -1;
  }

  // Recursive rejection, with (rrs) or without (rrs_wo) replacement of the children.
  TOKOPS_HD int recursive(bool without) const {
    const int start = first(cur), row = draft_row(start);
    if (!e.open_draft(row, cur)) return stop();
    double m = e.mass(), s = 1;
    uint64_t draft_left = 0;
    int slot = 0;
    for (int c = start; c >= 0; c = next(c), ++slot) {
      const int x = token(c);
      const float p_x = e.p_at(row, x), r_x = slot ? e.residual()[x] : e.q(x);
      if (!e.drawn(p_x, c)) return stop();
      if (passes(coin(slot), p_x, m, r_x, s)) {
        unmark(start, c);
        return c;
      }
      const float ratio = float(m / s);
      const bool fresh = slot == 0;
      const uint64_t left = e.put([&](int y, float r) {
        return subtracted(fresh ? e.q(y) : r, ratio, without && e.marked(y) ? 0.f : e.p_at(row, y));
      });
      if (left == 0) {
        unmark(start, c);
        return fall_back(c);
      }
      m = exact::mul(double(left), exact::kUnit);
      if (!without || next(c) < 0) continue;
      if (fresh) draft_left = e.total([&](int y) { return e.p_at(row, y); });
      draft_left -= exact::fixed(p_x);
      s = exact::mul(double(draft_left), exact::kUnit);
      if (draft_left == 0) break;
      e.mark(x, true);
    }
    unmark(start, -1);
    const auto f = [&](int y) { return e.residual()[y]; };
    emit(draw(e.total(f), Use::final_token, f));
    return -1;
  }
  TOKOPS_HD void unmark(int start, int end) const {
    if (!p.marks) return;
    for (int c = start; c >= 0 && c != end; c = next(c)) e.mark(token(c), false);
  }

  // All children but the last are the draft's most likely tokens; the last is drawn from the rest.
  TOKOPS_HD int greedy_plus_one() const {
    const int start = first(cur), row = draft_row(start);
    if (!e.open_draft(row, cur)) return stop();
    double s = 1;  // what the draft leaves to the last child
    int last = start, slot = 0;
    for (int c = start; next(c) >= 0; c = next(c), last = c, ++slot)
      s = exact::sub(s, double(e.p_at(row, token(c))));
    const int x = token(last);
    if (!e.drawn(e.p_at(row, x), last)) return stop();
    const double m = e.mass();
    if (s > 0 && passes(coin(slot), e.p_at(row, x), m, e.q(x), s)) return last;
    for (int c = start; c != last; c = next(c)) e.mark(token(c), true);
    const float ratio = s > 0 ? float(m / s) : 0.f;
    const auto f = [&](int y) {
      return e.marked(y) ? e.q(y) : subtracted(e.q(y), ratio, e.p_at(row, y));
    };
    const uint64_t total = e.total(f);
    const int y = total ? draw(total, Use::final_token, f) : -1;
    unmark(start, last);
    if (total == 0) return fall_back(last);
    const int child = child_with(cur, y);
    if (child < 0 || child == last) {
      emit(y);
      return -1;
    }
    return child;
  }

  // ---- Mode kseq: k drafts, each a chain under the root; those that agree survive together.

  struct Drafts {
    int node[kMostDrafts], slot[kMostDrafts];
    int count;
  };

  TOKOPS_HD void kseq() {
    Drafts alive;
    alive.count = 0;
    for (int c = first(0); c >= 0 && alive.count < kMostDrafts; c = next(c)) {
      alive.slot[alive.count] = alive.count;
      alive.node[alive.count++] = c;
    }
    // The nodes that are up for a test; cur is the parent of the first.
    while (alive.count > 0) {
      const int y = kseq_level(alive);
      if (y == -2) return;
      int kept = 0, winner = -1;
      for (int i = 0; i < alive.count; ++i) {
        if (token(alive.node[i]) != y) continue;
        if (winner < 0) winner = alive.node[i];
        alive.slot[kept] = alive.slot[i];
        alive.node[kept++] = alive.node[i];
      }
      if (winner < 0) return emit_below(y);
      accept(winner);
      alive.count = 0;
      for (int i = 0; i < kept; ++i) {
        const int c = first(alive.node[i]);
        if (c < 0) continue;
        alive.slot[alive.count] = alive.slot[i];
        alive.node[alive.count++] = c;
      }
    }
    retrace_path();
    open_bonus();
  }
  // The nodes accepted so far agree with the survivors, but need not be above the last of them.
  TOKOPS_HD void retrace_path() const {
    if (!e.leads()) return;
    for (int node = cur, j = depth; j > 0; node = parent(node), --j)
      if (j < p.columns) p.accept_node[int64_t(b) * p.columns + j] = node;
  }
  TOKOPS_HD void emit_below(int x) const {
    retrace_path();
    emit(x);
  }

  // The token of one level, or -2 once the walk has ended.
  TOKOPS_HD int kseq_level(const Drafts& d) {
    const int row = draft_row(d.node[0]);
    if (!e.open(cur) || !e.open_draft(row, cur)) {
      stop();
      return -2;
    }
    const double m = e.mass();
    const double rho = p.rho ? p.rho[int64_t(b) * p.N + cur] : find_rho(row, d.count);
    for (int i = 0; i < d.count; ++i) {
      const int x = token(d.node[i]);
      const float p_x = e.p_at(row, x);
      if (!e.drawn(p_x, d.node[i])) {
        stop();
        return -2;
      }
      if (passes(exact::mul(coin(d.slot[i]), rho), p_x, m, e.q(x), 1)) return x;
    }
    const double bar = exact::mul(rho, m);
    const auto high = [&](int x) {
      return double(e.q(x)) >= exact::mul(bar, double(e.p_at(row, x)));
    };
    const double upper = e.total([&](int x) { return high(x) ? e.p_at(row, x) : 0.f; });
    const double lower = e.total([&](int x) { return high(x) ? 0.f : e.q(x); });
    const double beta = beta_of(upper, lower, rho, m), accepted = 1 - none_of(beta, d.count);
    const double c = beta > 0 ? accepted / beta : 1;
    if (!e.valid_rho(c, rho, cur)) {
      stop();
      return -2;
    }
    const float below = float(c < rho ? 1 - c / rho : 0), above = float(exact::mul(c, m));
    const auto f = [&](int x) {
      return high(x) ? subtracted(e.q(x), above, e.p_at(row, x)) : exact::mul(e.q(x), below);
    };
    const uint64_t total = e.total(f);
    return total ? draw(total, Use::final_token, f) : draw_target(Use::final_token);
  }

  // Chance that a draft passes its test: sum of min(p, q / rho), from masses in units of 2^-40.
  TOKOPS_HD static double beta_of(double upper, double lower, double rho, double m) {
    return exact::add(exact::mul(upper, exact::kUnit), exact::mul(lower, exact::kUnit) / m / rho);
  }
  TOKOPS_HD static double none_of(double beta, int count) {
    const double one = exact::sub(1.0, beta);
    double all = 1;
    for (int i = 0; i < count; ++i) all = exact::mul(all, one);
    return all > 0 ? all : 0;
  }

  // The smallest division factor of a grid that is valid for m drafts: 256 steps of [1, m], then
  // 256 steps of the one that holds the root.
  TOKOPS_HD double find_rho(int row, int count) const {
    if (count == 1) return 1;
    double low = 1, step = exact::mul(double(count - 1), 1.0 / kRhoBins);
    for (int round = 0; round < 2; ++round) {
      const int edge = first_valid_edge(row, count, low, step);
      if (round == 1 || edge == 0) return exact::add(low, exact::mul(step, double(edge)));
      low = exact::add(low, exact::mul(step, double(edge - 1)));
      step = exact::mul(step, 1.0 / kRhoBins);
    }
    return low;
  }

  // Of the edges low + step * j, j 0..256, the first at which g is not positive.
  TOKOPS_HD int first_valid_edge(int row, int count, double low, double step) const {
    constexpr double kRounding = 1.0 / (1 << 22);  // what float32 laws are off by
    const double m = e.mass();
    e.count_ratios(row, low, step);
    for (int j = 0; j <= kRhoBins; ++j) {
      uint64_t upper, lower;
      e.ratio_masses(j, &upper, &lower);
      const double rho = exact::add(low, exact::mul(step, double(j)));
      const double beta = beta_of(double(upper), double(lower), rho, m);
      if (1 - none_of(beta, count) - exact::mul(rho, beta) <= kRounding) return j;
    }
    return kRhoBins;
  }

  // ---- Mode chain_block: one chain, all of it judged together.

  TOKOPS_HD void chain_block() {
    if (first(0) < 0) return open_bonus();
    double reach = 1, kept = 1;  // P_i, and that of the longest block that passed
    int tau = 0, i = 0;
    bool whole = false;
    if (!e.open(0)) return void(stop());
    for (int node = 0; first(node) >= 0; node = first(node), ++i) {
      const int c = first(node), row = draft_row(c);
      if (!e.open_draft(row, node) || !e.drawn(e.p_at(row, token(c)), c)) return void(stop());
      const double q_x = double(e.q(token(c))) / e.mass(), p_x = e.p_at(row, token(c));
      const double ratio = exact::mul(reach, q_x) / p_x;
      reach = p_x > 0 ? (ratio < 1 ? ratio : 1) : q_x > 0 ? 1 : 0;
      const int after = first(c);
      double pass = reach;
      if (after >= 0) {
        if (!e.open(c)) return void(stop());
        const double left = exact::mul(double(excess(draft_row(after), reach)), exact::kUnit);
        const double all = exact::sub(exact::add(left, 1.0), reach);
        pass = all > 0 ? left / all : 1;
      }
      const double u = random.uniform(first_position + uint32_t(i), 0, Use::accept);
      if (u < pass) {
        tau = i + 1;
        kept = reach;
        whole = after < 0;
      }
    }
    while (depth < tau) accept(first(cur));
    if (whole) return open_bonus();
    if (!e.open(cur)) return void(stop());
    const int row = draft_row(first(cur));
    const uint64_t total = excess(row, kept);
    const float scale = float(kept / e.mass());
    const int x = total ? draw(total, Use::final_token, [&](int y) { return over(scale, y, row); })
                        : draw_target(Use::final_token);
    emit(x);
  }

  // max(scale * q - p, 0) of the row that is open.
  TOKOPS_HD float over(float scale, int x, int row) const {
    const float left = exact::sub(exact::mul(scale, e.q(x)), e.p_at(row, x));
    return left > 0.f ? left : 0.f;
  }
  TOKOPS_HD uint64_t excess(int row, double reach) const {
    const float scale = float(reach / e.mass());
    return e.total([&](int x) { return over(scale, x, row); });
  }

  // ---- Mode typical: every node is judged by itself; the longest path of accepted ones is taken.

  TOKOPS_HD void typical() {
    double* score = p.score + int64_t(b) * p.N;  // sum of ln q down to a node; NaN: not accepted
    if (e.leads()) {
      for (int i = 0; i < p.N; ++i) score[i] = NAN;
      score[0] = 0;
    }
    e.sync();
    for (int node = 0; node < nodes; ++node) {
      if (!(score[node] == score[node]) || first(node) < 0) continue;
      if (!e.open(node)) return void(stop());
      const float scale = float(1 / e.mass());
      const double bar = threshold(scale);
      e.sync();
      for (int c = first(node); c >= 0; c = next(c)) {
        const float q_c = exact::mul(e.q(token(c)), scale);
        if (e.leads() && double(q_c) > bar)
          score[c] = exact::add(score[node], double(exact::log_positive(q_c)));
      }
      e.sync();
    }
    const int best = longest(score);
    retrace(best);
    emit(e.largest(cur));
  }

  // min(eps, delta * exp(-entropy)) of the row that is open.
  TOKOPS_HD double threshold(float scale) const {
    const uint64_t sum = e.total([&](int x) {
      const float q_x = exact::mul(e.q(x), scale);
      // 1e-5 * q more than the term, so that none is negative.
      const float ln = exact::log_positive(exact::add(q_x, 1e-5f));
      return exact::mul(q_x, exact::sub(1e-5f, ln));
    });
    const float entropy = float(exact::sub(exact::mul(double(sum), exact::kUnit), 1e-5));
    const double bar =
        exact::mul(p.delta, double(exact::exp_nonpositive(entropy > 0 ? -entropy : 0.f)));
    return bar < p.eps ? bar : p.eps;
  }

  TOKOPS_HD int depth_of_node(int node) const {
    int d = 0;
    for (int a = node; a > 0; a = parent(a)) ++d;
    return d;
  }
  TOKOPS_HD int longest(const double* score) const {
    int best = 0, best_depth = 0;
    for (int i = 1; i < nodes; ++i) {
      if (!(score[i] == score[i])) continue;
      const int d = depth_of_node(i);
      if (d < best_depth || (d == best_depth && !(score[i] > score[best]))) continue;
      best = i;
      best_depth = d;
    }
    return best;
  }
  TOKOPS_HD void retrace(int leaf) {
    while (cur != leaf) {
      int step = leaf;
      while (parent(step) != cur) step = parent(step);
      accept(step);
    }
  }

  // ---- Mode lantern: a child may borrow what its neighbours have.

  struct Loan {
    int count;    // neighbours it takes in
    double mass;  // of them, in the scale of the row
  };

  // The longest prefix of x's neighbours whose mass in `from` is within the budget.
  template <class F>
  TOKOPS_HD Loan borrow(int x, double scale, const F& from) const {
    const int code = x - p.offset;
    if (code < 0 || code >= p.codes) return {0, 0};
    const double budget =
        p.delta > 1 ? exact::mul(p.delta - 1, double(from(x))) : exact::mul(p.delta, scale);
    const double most = exact::mul(budget, exact::kOne);
    const uint64_t limit = most > 0 ? most < 4e18 ? uint64_t(most) : uint64_t(4e18) : 0;
    uint64_t sum = 0;
    int count = 0;
    e.within(p.reach, limit, [&](int j) { return from(near_to(x, j)); }, &count, &sum);
    return {count, exact::mul(double(sum), exact::kUnit)};
  }
  // The j-th nearest token, inside the vocabulary whatever the table says.
  TOKOPS_HD int near_to(int x, int j) const {
    const int y = p.neighbours[int64_t(x - p.offset) * p.reach + j] + p.offset;
    return y < 0 ? 0 : y < p.V ? y : p.V - 1;
  }

  TOKOPS_HD int lantern() const {
    if (is_greedy()) return lantern_greedy();
    return p.draft ? lantern_drawn() : lantern_given();
  }

  TOKOPS_HD int lantern_greedy() const {
    const int best = e.largest(cur);
    if (!e.open(cur)) return stop();
    for (int c = first(cur); c >= 0; c = next(c)) {
      const int x = token(c);
      const Loan loan = borrow(x, e.mass(), [&](int y) { return e.q(y); });
      const double raised = exact::add(double(e.q(x)), loan.mass), top = e.q(best);
      if (x == best || raised > top || (raised == top && x < best)) return c;
    }
    emit(best);
    return -1;
  }

  // Children drawn without replacement: rrs_wo with what is borrowed added to the test.
  TOKOPS_HD int lantern_drawn() const {
    const int start = first(cur), row = draft_row(start);
    if (!e.open_draft(row, cur)) return stop();
    double m = e.mass(), s = 1;
    uint64_t draft_left = 0;
    int slot = 0;
    for (int c = start; c >= 0; c = next(c), ++slot) {
      const int x = token(c);
      const float p_x = e.p_at(row, x);
      const bool fresh = slot == 0;
      const auto from = [&](int y) { return fresh ? e.q(y) : e.residual()[y]; };
      const float r_x = from(x);
      if (!e.drawn(p_x, c)) return stop();
      const Loan loan = borrow(x, m, from);
      if (passes(coin(slot), p_x, m, exact::add(double(r_x), loan.mass), s)) {
        unmark(start, c);
        return c;
      }
      if (fresh) e.put([&](int y, float) { return e.q(y); });
      const uint64_t left = subtract_loan(x, loan, row, float(m / s));
      if (left == 0) {
        unmark(start, c);
        return fall_back(c);
      }
      m = exact::mul(double(left), exact::kUnit);
      if (next(c) < 0) continue;
      if (fresh) draft_left = e.total([&](int y) { return e.p_at(row, y); });
      draft_left -= exact::fixed(p_x);
      s = exact::mul(double(draft_left), exact::kUnit);
      if (draft_left == 0) break;
      e.mark(x, true);
    }
    unmark(start, -1);
    const auto f = [&](int y) { return e.residual()[y]; };
    emit(draw(e.total(f), Use::final_token, f));
    return -1;
  }

  // The residual after x was rejected, in place; its mass.
  TOKOPS_HD uint64_t subtract_loan(int x, const Loan& loan, int row, float ratio) const {
    const bool compat = p.residual == Residual::compat && loan.count > 0;
    if (p.residual == Residual::moved && loan.count > 0) {
      const float raised = exact::add(e.residual()[x], float(loan.mass));
      e.each(loan.count, [&](int j) { e.residual()[near_to(x, j)] = 0.f; });
      if (e.leads()) e.residual()[x] = raised;
      e.sync();
    }
    if (compat) mark_near(x, 2);
    const uint64_t left = e.put(
        [&](int y, float r) { return subtracted(r, ratio, e.marked(y) ? 0.f : e.p_at(row, y)); });
    if (compat) mark_near(x, -2);
    return left;
  }
  // Adds to the marks of x and all its neighbours in the table.
  TOKOPS_HD void mark_near(int x, int amount) const {
    e.each(p.reach, [&](int j) { e.add_mark(near_to(x, j), amount); });
    if (e.leads()) e.add_mark(x, amount);
    e.sync();
  }

  // Children that were not drawn: each is offered its own mass and what it borrows.
  TOKOPS_HD int lantern_given() const {
    const bool compat = p.residual == Residual::compat;
    const double bar = exact::mul(coin(0), e.mass());
    double m = e.mass(), sum = 0;  // what the residual sums to, what has been offered
    int slot = 0, last = -1;
    for (int c = first(cur); c >= 0; c = next(c), ++slot) {
      const int x = token(c);
      const bool fresh = slot == 0;
      const auto from = [&](int y) { return fresh ? e.q(y) : e.residual()[y]; };
      const Loan loan = borrow(x, m, from);
      const double offered = exact::add(double(from(x)), loan.mass);
      sum = exact::add(sum, offered);
      if (compat ? exact::mul(coin(slot), m) < offered : bar < sum) return c;
      if (fresh) e.put([&](int y, float) { return e.q(y); });
      const int gone = compat && loan.count ? p.reach : loan.count;
      e.each(gone, [&](int j) { e.residual()[near_to(x, j)] = 0.f; });
      if (e.leads()) e.residual()[x] = 0.f;
      e.sync();
      m = compat ? exact::mul(double(e.total([&](int y) { return e.residual()[y]; })), exact::kUnit)
                 : exact::sub(e.mass(), sum);
      last = c;
    }
    const auto f = [&](int y) { return e.residual()[y]; };
    uint64_t total = e.total(f);
    if (total) {
      emit(draw(total, Use::final_token, f));
      return -1;
    }
    const auto untested = [&](int y) { return child_with(cur, y) >= 0 ? 0.f : e.q(y); };
    total = e.total(untested);
    if (total == 0) return fall_back(last);
    emit(draw(total, Use::final_token, untested));
    return -1;
  }

  // ---- All of it.

  TOKOPS_HD bool is_greedy() const {
    return p.mode == Verify::greedy || (p.mode == Verify::lantern && p.settings.temperature == 0);
  }

  // The row that cur's children are judged by is open, but for modes that only look at its largest.
  TOKOPS_HD int step() const {
    if constexpr (kPart == Part::simple || kPart == Part::all) {
      if (p.mode == Verify::greedy) return greedy();
      if (p.mode == Verify::target_only) return p.match_plain ? plain_match() : target_only();
    }
    if constexpr (kPart == Part::drawn || kPart == Part::all) {
      if (p.mode == Verify::greedy_plus_one) return greedy_plus_one();
      if (p.mode != Verify::lantern) return recursive(p.mode == Verify::rrs_wo);
    }
    if constexpr (kPart == Part::other || kPart == Part::all) return lantern();
    return -1;
  }

  // The token behind a leaf.
  TOKOPS_HD void bonus() const {
    if (is_greedy()) return emit(e.largest(cur));
    emit(draw_target(p.match_plain ? Use::plain : Use::final_token));
  }
  TOKOPS_HD void open_bonus() const {
    if (!e.open(cur)) return void(stop());
    bonus();
  }

  TOKOPS_HD void run() {
    begin();
    if constexpr (kPart == Part::other || kPart == Part::all) {
      if (p.mode == Verify::kseq) return kseq();
      if (p.mode == Verify::chain_block) return chain_block();
      if (p.mode == Verify::typical) return typical();
    }
    for (;;) {
      if (!is_greedy() && !e.open(cur)) return void(stop());
      if (first(cur) < 0) return bonus();
      const int child = step();
      if (child < 0) return;
      accept(child);
    }
  }
};

}  // namespace
}  // namespace tokops
