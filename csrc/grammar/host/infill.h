// Infilling under a context-free grammar: whether a text with gaps can be completed, and how.
// Constrained decoding of diffusion models asks this for every token it is about to commit (arXiv
// 2508.10111).
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "infill_witness.h"

namespace tokops::grammar::infill {

struct Bounds {
  int64_t steps = 2'000'000'000;
  std::optional<double> seconds;
  std::function<bool()> poll;  // asked now and then; true cancels
};

enum class Answer { kNo, kYes, kUnknown };

struct Verdict {
  Answer answer = Answer::kUnknown;
  const char* bound = "";          // why it is unknown
  int64_t spent = 0;               // steps
  std::optional<Completion> best;  // of `complete`, where the answer is yes
};

// Answers one question after the other, keeping what the next one may share with the last.
// Questions of several threads wait for each other; a checker of its own for each thread does not.
class Checker {
 public:
  explicit Checker(std::shared_ptr<const Grammar> grammar)
      : grammar_(std::move(grammar)), search_(*grammar_) {}

  Verdict check(const std::vector<Part>&, const Bounds&);
  // `weights`: what a byte in each gap costs, 1 where there is none.
  Verdict complete(const std::vector<Part>&, const std::vector<int64_t>& weights, const Bounds&);
  void cancel() { cancelled_ = true; }  // the question that runs now, if any
  int64_t rows_computed() const { return search_.rows_computed(); }

 private:
  template <typename Ask>
  Verdict ask(const Bounds&, Ask&&);

  std::shared_ptr<const Grammar> grammar_;
  Search search_;
  std::mutex mutex_;
  std::atomic<bool> cancelled_ = false;
};

}  // namespace tokops::grammar::infill
