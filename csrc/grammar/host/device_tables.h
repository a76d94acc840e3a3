// Matchers as a deterministic automaton: what a matcher may still do is one state, and the tables
// say where each byte leads from it. States are worked out when a text comes to them.
//
// Two matchers are in one state where their configurations are equal once positions in the text are
// left out: by the frames that they stand on, the keys and items that these hold, and the part of
// the text that is still to be read (an item of a unique array, a key of a class). So a state is
// described by words, and equal words have one number.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "matcher.h"

namespace tokops::grammar {

// One set of tables serves several grammars of one vocabulary: their states have different numbers.
class DeviceTables {
 public:
  DeviceTables(std::shared_ptr<Vocabulary>, int32_t max_states, int32_t max_masks);

  // The state at the beginning of a text; kNotKnown where there is no room. Grammars that are there
  // already keep theirs.
  int32_t add(const std::shared_ptr<const Grammar>&);
  // Where a token leads: a state, kDeadRow, kFinishedRow, or kHostRow where there is no room.
  int32_t visit(int32_t state, int32_t token);
  // Works out all bytes of a state. False where there is no room.
  bool explore(int32_t state);
  // The same for what a state leads to, nearest first, of at most so many states. Whether that was
  // all.
  bool explore_all(int32_t state, int32_t most);
  // Works out all bytes of the states on a token's way that a byte of it leaves as they are: the
  // insides of strings, to which texts come back again and again.
  void explore_loops(int32_t state, int32_t token);
  // Index of a state's mask; kNotKnown where there is no room.
  int32_t mask(int32_t state);
  // A matcher in that state; its text is one that leads there.
  std::unique_ptr<Matcher> matcher(int32_t state);
  // The state that a matcher is in, or kNotKnown where the tables don't have it.
  int32_t locate(const Matcher&);

  int32_t states() const { return int32_t(accepting_.size()); }
  int32_t masks() const { return masks_; }
  int32_t max_states() const { return max_states_; }
  int32_t max_masks() const { return max_masks_; }
  const std::shared_ptr<Vocabulary>& vocabulary() const { return vocabulary_; }

  // What is new since the last call: states whose rows have changed, and masks from an index on.
  std::vector<int32_t> take_changed();
  int32_t take_masks() { return std::exchange(taken_masks_, masks_); }
  const int32_t* next(int32_t state) const { return next_.data() + size_t(state) * 256; }
  bool accepting(int32_t state) const { return accepting_[size_t(state)]; }
  int32_t mask_of(int32_t state) const { return mask_of_[size_t(state)]; }
  const uint32_t* pool(int32_t mask) const {
    return pool_.data() + size_t(mask) * size_t(vocabulary_->words());
  }

 private:
  class Describer;
  struct Language {
    std::shared_ptr<const Grammar> grammar;
    Matcher text;  // moves between states
    int32_t start;
  };
  struct Origin {  // a state that a byte led from when this one was found; a start's is -1
    int32_t from;
    int32_t language;
    uint8_t byte;
  };

  void check(int32_t state) const;
  Matcher* go(int32_t state);  // null: a bound of the matcher was passed
  int32_t extend(Matcher&, int32_t state, uint8_t b);
  int32_t number(const std::string& words, const Origin&, bool accepting);
  void changed(int32_t state);
  std::string path(int32_t state) const;
  int32_t intern(std::string&&);  // of a frame's words; -1: no room

  std::shared_ptr<Vocabulary> vocabulary_;
  int32_t max_states_, max_masks_, masks_ = 0, taken_masks_ = 0;
  std::deque<Language> languages_;
  std::vector<int32_t> next_;
  std::vector<uint8_t> accepting_, dirty_, explored_;
  std::vector<int32_t> mask_of_, changed_;
  std::vector<Origin> origin_;
  std::vector<uint32_t> pool_;
  std::unordered_multimap<uint64_t, int32_t> by_content_;
  std::unordered_map<std::string, int32_t> by_words_, frames_;
  size_t word_bytes_ = 0;
};

}  // namespace tokops::grammar
