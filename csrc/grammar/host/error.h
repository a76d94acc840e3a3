// What is raised when a grammar can't be compiled, or its bounds are passed.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace tokops::grammar {

// `keyword`: the keyword or feature at fault; `pointer`: where (a JSON pointer, or "line:column");
// `reason`: a sentence. Becomes tokops.grammar.GrammarError.
struct GrammarError : std::runtime_error {
  std::string keyword, pointer, reason;
  int64_t offset = -1;  // of what is wrong in a pattern, in bytes
  GrammarError(std::string keyword_, std::string pointer_, std::string reason_)
      : std::runtime_error(keyword_ + " at " + (pointer_.empty() ? "the root" : pointer_) + ": " +
                           reason_),
        keyword(std::move(keyword_)),
        pointer(std::move(pointer_)),
        reason(std::move(reason_)) {}
};

// A bound on memory, states, alternatives or time was passed. keyword is the bound's name.
struct BudgetError : GrammarError {
  using GrammarError::GrammarError;
};

// What `work` returns. An error of it that doesn't say where gets the pointer `where()`.
template <class Where, class Work>
auto placed(const Where& where, const Work& work) {
  try {
    return work();
  } catch (const BudgetError& e) {
    if (!e.pointer.empty()) throw;
    throw BudgetError(e.keyword, where(), e.reason);
  } catch (const GrammarError& e) {
    if (!e.pointer.empty()) throw;
    throw GrammarError(e.keyword, where(), e.reason);
  }
}

}  // namespace tokops::grammar
