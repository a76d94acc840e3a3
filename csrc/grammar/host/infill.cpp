#include "infill.h"

namespace tokops::grammar::infill {

template <typename Ask>
Verdict Checker::ask(const Bounds& bounds, Ask&& ask) {
  const std::lock_guard lock(mutex_);
  cancelled_ = false;
  Effort effort(bounds.steps, bounds.seconds, &cancelled_, bounds.poll);
  Verdict verdict;
  try {
    ask(effort, verdict);
  } catch (const OutOfEffort& out) {
    verdict.bound = out.bound;
  } catch (const std::bad_alloc&) {
    verdict.bound = "memory";
  }
  verdict.spent = effort.spent();
  return verdict;
}

Verdict Checker::check(const std::vector<Part>& parts, const Bounds& bounds) {
  return ask(bounds, [&](Effort& effort, Verdict& verdict) {
    verdict.answer = search_.completable(parts, effort) ? Answer::kYes : Answer::kNo;
  });
}

Verdict Checker::complete(const std::vector<Part>& parts, const std::vector<int64_t>& weights,
                          const Bounds& bounds) {
  return ask(bounds, [&](Effort& effort, Verdict& verdict) {
    const bool found = search_.completable(parts, effort);
    if (found) verdict.best = shortest_completion(search_, weights, effort);
    verdict.answer = found ? Answer::kYes : Answer::kNo;
  });
}

}  // namespace tokops::grammar::infill
