// Modes chain_block and typical of the walk, which judge more than a level at a time; see
// tree_verify.walk.h.
#pragma once
#include "speculative/tree_verify.walk.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

template <class Engine, Part kPart>
TOKOPS_HD_CALL void Walk<Engine, kPart>::chain_block() {
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

template <class Engine, Part kPart>
TOKOPS_HD float Walk<Engine, kPart>::over(float scale, int x, int row) const {
  const float left = exact::sub(exact::mul(scale, e.q(x)), e.p_at(row, x));
  return left > 0.f ? left : 0.f;
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL uint64_t Walk<Engine, kPart>::excess(int row, double reach) const {
  const float scale = float(reach / e.mass());
  return e.total([&](int x) { return over(scale, x, row); });
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL void Walk<Engine, kPart>::typical() {
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

template <class Engine, Part kPart>
TOKOPS_HD_CALL double Walk<Engine, kPart>::threshold(float scale) const {
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

template <class Engine, Part kPart>
TOKOPS_HD int Walk<Engine, kPart>::depth_of_node(int node) const {
  int d = 0;
  for (int a = node; a > 0; a = parent(a)) ++d;
  return d;
}

template <class Engine, Part kPart>
TOKOPS_HD int Walk<Engine, kPart>::longest(const double* score) const {
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

template <class Engine, Part kPart>
TOKOPS_HD void Walk<Engine, kPart>::retrace(int leaf) {
  while (cur != leaf) {
    int step = leaf;
    while (parent(step) != cur) step = parent(step);
    accept(step);
  }
}

}  // namespace
}  // namespace tokops
