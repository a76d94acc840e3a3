// Mode lantern of the walk; see tree_verify.walk.h.
#pragma once
#include "speculative/tree_verify.walk.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

template <class Engine, Part kPart>
template <class F>
TOKOPS_HD typename Walk<Engine, kPart>::Loan Walk<Engine, kPart>::borrow(int x, double scale,
                                                                         const F& from) const {
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

template <class Engine, Part kPart>
TOKOPS_HD int Walk<Engine, kPart>::near_to(int x, int j) const {
  const int y = p.neighbours[int64_t(x - p.offset) * p.reach + j] + p.offset;
  return y < 0 ? 0 : y < p.V ? y : p.V - 1;
}

template <class Engine, Part kPart>
TOKOPS_HD int Walk<Engine, kPart>::lantern() const {
  if (is_greedy()) return lantern_greedy();
  return p.draft ? lantern_drawn() : lantern_given();
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL int Walk<Engine, kPart>::lantern_greedy() const {
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

template <class Engine, Part kPart>
TOKOPS_HD_CALL int Walk<Engine, kPart>::lantern_drawn() const {
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
    if (passes(coin(slot), fresh ? p_x : as_drawn(p_x), m, exact::add(double(r_x), loan.mass), s)) {
      unmark(start, c);
      return c;
    }
    if (fresh) e.put([&](int y, float) { return e.q(y); });
    const uint64_t left = subtract_loan(x, loan, row, float(m / s), fresh);
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

template <class Engine, Part kPart>
TOKOPS_HD_CALL uint64_t Walk<Engine, kPart>::subtract_loan(int x, const Loan& loan, int row,
                                                           float ratio, bool fresh) const {
  const bool compat = p.residual == Residual::compat && loan.count > 0;
  if (p.residual == Residual::moved && loan.count > 0) {
    const float raised = exact::add(e.residual()[x], float(loan.mass));
    e.each(loan.count, [&](int j) { e.residual()[near_to(x, j)] = 0.f; });
    if (e.leads()) e.residual()[x] = raised;
    e.sync();
  }
  if (compat) mark_near(x, 2);
  const uint64_t left = e.put([&](int y, float r) {
    const float p_y = e.marked(y) ? 0.f : e.p_at(row, y);
    return subtracted(r, ratio, fresh ? p_y : as_drawn(p_y));
  });
  if (compat) mark_near(x, -2);
  return left;
}

template <class Engine, Part kPart>
TOKOPS_HD void Walk<Engine, kPart>::mark_near(int x, int amount) const {
  e.each(p.reach, [&](int j) { e.add_mark(near_to(x, j), amount); });
  if (e.leads()) e.add_mark(x, amount);
  e.sync();
}

template <class Engine, Part kPart>
TOKOPS_HD_CALL int Walk<Engine, kPart>::lantern_given() const {
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

}  // namespace
}  // namespace tokops
