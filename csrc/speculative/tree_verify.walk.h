// clang-format off
// The walk itself, for CPU and CUDA. An Engine reads rows and sums them:
//
//   bool open(node)          prepares the target's row; false if it holds nothing (a fault is noted)
//   float q(x)               its weight of token x; mass() is what the weights sum to
//   bool open_draft(row, node), drawn(p_x, node), valid_rho(c, rho, node)   checks, where there are any
//   float p_at(row, x)       the draft's probability
//   uint64_t row_total()     total of q
//   uint64_t total(f)        sum of fixed(f(x)) over all tokens, kept in parts for find
//   int find(t, f)           the first token whose running sum of what total summed exceeds t
//   uint64_t discount(x, w)  takes w from the parts at x
//   int largest(node)        the most likely token, -1 if there is none; closes the row that is open
//   float* residual()        V floats; written by put(f): residual[x] = f(x, residual[x])
//   void count_ratios(row, low, step), ratio_masses(j, &upper, &lower)      see ratio_bin
//   void within(n, limit, f, &count, &sum)   the longest prefix of f(0..n) that sums to at most limit
//   void each(n, f)          f(j) for all j below n
//   bool marked(x), mark(x, on), add_mark(x, amount)
//   bool leads()             whether this thread writes single values; sync() makes them seen
//
// On CUDA all threads of a block run the walk and get the same results.
// clang-format on
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
enum class Part { all, simple, drawn, block, lossy };
TOKOPS_HD Part part_of(Verify mode) {
  if (mode == Verify::greedy || mode == Verify::target_only) return Part::simple;
  const bool drawn =
      mode == Verify::rrs || mode == Verify::rrs_wo || mode == Verify::greedy_plus_one;
  if (drawn) return Part::drawn;
  return mode == Verify::kseq || mode == Verify::chain_block ? Part::block : Part::lossy;
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
  // A parent stands before its child; the root where a device that does not check meets another.
  TOKOPS_HD int parent(int node) const {
    const int up = p.parents[int64_t(b) * p.N + node];
    return up >= 0 && up < node ? up : 0;
  }
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
    const uint64_t total = e.row_total();
    return total ? draw(total, use, [&](int x) { return e.q(x); }) : -1;
  }

  TOKOPS_HD static float subtracted(float r, float c, float p_x) {
    const float left = exact::sub(r, exact::mul(c, p_x));
    return left > 0.f ? left : 0.f;
  }
  // A probability as draws count it. Where little of the draft is left these units are all there
  // is.
  TOKOPS_HD static float as_drawn(float p) {
    return float(exact::mul(double(exact::fixed(p)), exact::kUnit));
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
    uint64_t total = e.row_total();
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
      const bool fresh = slot == 0, rest = without && !fresh;
      const float p_x = e.p_at(row, x), r_x = fresh ? e.q(x) : e.residual()[x];
      if (!e.drawn(p_x, c)) return stop();
      if (passes(coin(slot), rest ? as_drawn(p_x) : p_x, m, r_x, s)) {
        unmark(start, c);
        return c;
      }
      const float ratio = float(m / s);
      const uint64_t left = e.put([&](int y, float r) {
        const float p_y = without && e.marked(y) ? 0.f : e.p_at(row, y);
        return subtracted(fresh ? e.q(y) : r, ratio, rest ? as_drawn(p_y) : p_y);
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
    uint64_t draft_left = e.total([&](int y) { return e.p_at(row, y); });  // to the last child
    int last = start, slot = 0;
    for (int c = start; next(c) >= 0; c = next(c), last = c, ++slot)
      draft_left -= exact::fixed(e.p_at(row, token(c)));
    const double s = exact::mul(double(draft_left), exact::kUnit);
    const int x = token(last);
    if (!e.drawn(e.p_at(row, x), last)) return stop();
    const double m = e.mass();
    if (s > 0 && passes(coin(slot), as_drawn(e.p_at(row, x)), m, e.q(x), s)) return last;
    for (int c = start; c != last; c = next(c)) e.mark(token(c), true);
    const float ratio = s > 0 ? float(m / s) : 0.f;
    const auto f = [&](int y) {
      return e.marked(y) ? e.q(y) : subtracted(e.q(y), ratio, as_drawn(e.p_at(row, y)));
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

  TOKOPS_HD_CALL void kseq();
  // The nodes accepted so far agree with the survivors, but need not be above the last of them.
  TOKOPS_HD void retrace_path() const;
  TOKOPS_HD void emit_below(int x) const;

  // The token of one level, or -2 once the walk has ended.
  TOKOPS_HD_CALL int kseq_level(const Drafts& d);

  // Chance that a draft passes its test: sum of min(p, q / rho), from masses in units of 2^-40.
  TOKOPS_HD static double beta_of(double upper, double lower, double rho, double m);
  TOKOPS_HD static double none_of(double beta, int count);

  // The smallest division factor of a grid that is valid for m drafts: 256 steps of [1, m], then
  // 256 steps of the one that holds the root.
  TOKOPS_HD_CALL double find_rho(int row, int count) const;

  // Of the edges low + step * j, j 0..256, the first at which g is not positive.
  TOKOPS_HD_CALL int first_valid_edge(int row, int count, double low, double step) const;

  // ---- Mode chain_block: one chain, all of it judged together.

  TOKOPS_HD_CALL void chain_block();

  // max(scale * q - p, 0) of the row that is open.
  TOKOPS_HD float over(float scale, int x, int row) const;
  TOKOPS_HD_CALL uint64_t excess(int row, double reach) const;

  // ---- Mode typical: every node is judged by itself; the longest path of accepted ones is taken.

  TOKOPS_HD_CALL void typical();

  // min(eps, delta * exp(-entropy)) of the row that is open.
  TOKOPS_HD_CALL double threshold(float scale) const;

  TOKOPS_HD int depth_of_node(int node) const;
  TOKOPS_HD int longest(const double* score) const;
  TOKOPS_HD void retrace(int leaf);

  // ---- Mode lantern: a child may borrow what its neighbours have.

  struct Loan {
    int count;    // neighbours it takes in
    double mass;  // of them, in the scale of the row
  };

  // The longest prefix of x's neighbours whose mass in `from` is within the budget.
  template <class F>
  TOKOPS_HD Loan borrow(int x, double scale, const F& from) const;
  // The j-th nearest token, inside the vocabulary whatever the table says.
  TOKOPS_HD int near_to(int x, int j) const;

  TOKOPS_HD int lantern() const;

  TOKOPS_HD_CALL int lantern_greedy() const;

  // Children drawn without replacement: rrs_wo with what is borrowed added to the test.
  TOKOPS_HD_CALL int lantern_drawn() const;

  // The residual after x was rejected, in place; its mass.
  TOKOPS_HD_CALL uint64_t subtract_loan(int x, const Loan& loan, int row, float ratio,
                                        bool fresh) const;
  // Adds to the marks of x and all its neighbours in the table.
  TOKOPS_HD void mark_near(int x, int amount) const;

  // Children that were not drawn: each is offered its own mass and what it borrows.
  TOKOPS_HD_CALL int lantern_given() const;

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
    if constexpr (kPart == Part::lossy || kPart == Part::all) return lantern();
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
    if constexpr (kPart == Part::block || kPart == Part::all) {
      if (p.mode == Verify::kseq) return kseq();
      if (p.mode == Verify::chain_block) return chain_block();
    }
    if constexpr (kPart == Part::lossy || kPart == Part::all) {
      if (p.mode == Verify::typical) return typical();
    }
    if constexpr (kPart != Part::block) walk_levels();
  }
  TOKOPS_HD void walk_levels() {
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
