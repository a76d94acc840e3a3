// Whether a context-free grammar has a word that a text with gaps allows.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "infill_grammar.h"
#include "infill_text.h"

namespace tokops::grammar::infill {

// A grammar that is ready: normal form, terminals, and which productions a symbol occurs in.
struct Grammar {
  struct Pair {
    int32_t head, other;
  };
  Cfg source, normal;
  Terminals terminals;
  std::vector<int32_t> empty;               // heads with an empty body
  std::vector<std::vector<int32_t>> units;  // [symbols]: heads A of A -> X
  std::vector<std::vector<Pair>> lefts;     // [symbols]: (A, Y) of A -> X Y
  std::vector<std::vector<Pair>> rights;    // [symbols]: (A, Y) of A -> Y X

  // Throws GrammarError where the start derives nothing.
  // `between` and `not_before` as of compile_terminals.
  Grammar(Langs&, Cfg, std::vector<Lang> langs, Lexer,
          const std::map<std::string, std::string>& not_before, int32_t between = -1);
};

// Rows of bits of one length, zero when taken; those given back are used again.
class RowPool {
 public:
  explicit RowPool(int32_t words) : words_(words) {}
  int32_t words() const { return words_; }
  uint64_t* take();
  void give(uint64_t* row) { free_.push_back(row); }

 private:
  static constexpr size_t kChunk = 256;  // rows
  static constexpr size_t kMostBytes = size_t(512) << 20;
  int32_t words_;
  size_t used_ = kChunk;
  std::vector<std::unique_ptr<uint64_t[]>> chunks_;
  std::vector<uint64_t*> free_;
};

// Facts "A derives a word that leads from state p to state q", as one row of bits q for every A and
// p. A terminal never leads to the left, so rows are filled from the end of the text to its start,
// and a row is final before a place further left reads it. It depends on nothing left of its place:
// what the next text shares at its end with this one is not computed again.
class Search {
 public:
  explicit Search(const Grammar& grammar)
      : grammar_(grammar), text_(grammar.terminals), pool_(std::make_unique<RowPool>(4)) {}

  // Throws OutOfEffort; then nothing is kept.
  bool completable(const std::vector<Part>&, Effort&);

  // After an answer "yes".
  Text& text() { return text_; }
  const Grammar& grammar() const { return grammar_; }
  bool fact(int32_t symbol, int32_t from, int32_t to) const;
  template <typename Visit>
  void each(int32_t symbol, int32_t from, Visit&& visit);  // states that the symbol leads to

  int64_t rows_computed() const {
    return computed_;
  }  // states whose rows were filled, in all questions

 private:
  void forget();
  void drop(Text::State&);
  void fill(Effort&);
  void fill_place(const std::vector<int32_t>& states, Effort&);

  const Grammar& grammar_;
  Text text_;
  std::unique_ptr<RowPool> pool_;
  std::vector<int32_t> state_of_, free_ids_;  // of bits
  int64_t computed_ = 0;
};

template <typename Visit>
void Search::each(int32_t symbol, int32_t from, Visit&& visit) {
  const uint64_t* row = text_.at(from).rows[symbol];
  if (!row) return;
  for (int32_t w = 0; w < pool_->words(); ++w) {
    for (uint64_t left = row[w]; left; left &= left - 1)
      visit(state_of_[w * 64 + __builtin_ctzll(left)]);
  }
}

}  // namespace tokops::grammar::infill
