// Mode kseq of the walk; see tree_verify.walk.h.
#pragma once
#include "speculative/tree_verify.walk.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

template <class Engine, Part kPart>
TOKOPS_HD_CALL void Walk<Engine, kPart>::kseq() {
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

template <class Engine, Part kPart>
TOKOPS_HD void Walk<Engine, kPart>::retrace_path() const {
  if (!e.leads()) return;
  for (int node = cur, j = depth; j > 0; node = parent(node), --j)
    if (j < p.columns) p.accept_node[int64_t(b) * p.columns + j] = node;
}

template <class Engine, Part kPart>
TOKOPS_HD void Walk<Engine, kPart>::emit_below(int x) const {
  retrace_path();
  emit(x);
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL int Walk<Engine, kPart>::kseq_level(const Drafts& d) {
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

template <class Engine, Part kPart>
TOKOPS_HD double Walk<Engine, kPart>::beta_of(double upper, double lower, double rho, double m) {
  return exact::add(exact::mul(upper, exact::kUnit), exact::mul(lower, exact::kUnit) / m / rho);
}

template <class Engine, Part kPart>
TOKOPS_HD double Walk<Engine, kPart>::none_of(double beta, int count) {
  const double one = exact::sub(1.0, beta);
  double all = 1;
  for (int i = 0; i < count; ++i) all = exact::mul(all, one);
  return all > 0 ? all : 0;
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL double Walk<Engine, kPart>::find_rho(int row, int count) const {
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

template <class Engine, Part kPart>
TOKOPS_HD_CALL int Walk<Engine, kPart>::first_valid_edge(int row, int count, double low,
                                                         double step) const {
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

}  // namespace
}  // namespace tokops
