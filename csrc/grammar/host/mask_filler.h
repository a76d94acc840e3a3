// What fills one mask: see mask.cpp.
#pragma once
#include <cstring>

#include "matcher.h"

namespace tokops::grammar {

class MaskFiller {
 public:
  MaskFiller(Matcher& m, uint32_t* mask)
      : m_(m), v_(*m.grammar().vocabulary()), langs_(m.grammar().langs()), mask_(mask) {}
  void run();

 private:
  Matcher& m_;
  Vocabulary& v_;
  Langs& langs_;
  uint32_t* mask_;
  int32_t words_ = 0;
  bool blank_ = false;  // nothing has been written yet
  // Tokens of which accept decides whether they end or begin an item that a unique array has.
  std::vector<int32_t> verify_;

  void start() {
    if (!blank_) return;
    blank_ = false;
    std::memset(mask_, 0, size_t(words_) * 4);
  }
  void set(int32_t t) { mask_[t >> 5] |= 1u << (t & 31); }
  void set_eos() {
    for (const int32_t e : v_.eos())
      if (e >= 0 && e < v_.width()) set(e);
  }
  void set_tokens(int32_t from, int32_t to) {
    for (int32_t i = from; i < to; ++i) set(v_.order()[i]);
  }
  void merge(const Mask& from) {
    if (blank_) {
      blank_ = false;
      std::memcpy(mask_, from.words.data(), size_t(words_) * 4);
      return;
    }
    for (int32_t w = 0; w < words_; ++w) mask_[w] |= from.words[size_t(w)];
  }
  bool unique_item(const Config& c) const {
    const Frame& f = m_.frame(c.frame);
    return f.kind == Frame::kArray && static_cast<const ArrayShape*>(f.shape)->unique;
  }
  // In an item of a unique array that may not become what another is, which its lexeme decides.
  bool held(const Config& c) const { return m_.grammar().watched() && !m_.free_beside(c); }
  bool clears(const Config& c) const {
    return c.phase == Phase::kOtherKey || unique_item(c) || held(c);
  }
  const Strings& strings_of(const Config& c) const {
    return m_.grammar().schema(m_.frame(c.frame).schema).value(c.id).strings[c.index];
  }
  bool has_record(const Config& c) const;
  bool takes_space(const Config& c) const;
  // Sets the tokens below a node that the present state takes.
  void below(int32_t node);
  // Tokens below a node that begin with whitespace, which configurations may take more of. After it
  // they go on without.
  void spaces(std::vector<Config>& all, int32_t node);
  void begin_state() {
    m_.marks_.push_back(m_.mark());
    m_.entered_.clear();
  }
  void end_state() { m_.pop(1); }
  void walk(int32_t node);
  // Bytes that the state may take, where that is quickly said.
  bool quick_bytes(ByteSet& s) const;

  // Lexemes: mask_lexemes.cpp.
  void look_up(const std::vector<Config>& all, int32_t node);
  void alone(const Config& c, int32_t node);
  void one(const Config& c, int32_t node);
  // Bytes that the present state may take; some may turn out to be refused.
  ByteSet first_bytes();
  void inside(Record& r, const Config& c, const Strings* bounds);
  // The state once the lexeme has ended.
  void after(const Config& c);
  // `unchecked`: of the matcher, before the lexeme's end: where it has grown, an item of a unique
  // array has ended.
  void rest(const Record& r, int32_t node, int32_t fewest, int32_t most, int64_t unchecked);
  // Takes back the tokens below a node that spell a key which is named or there already.
  void remove_taken(const Config& c, int32_t node);
  // The same for strings that make an item which the array has already.
  void remove_items(const Config& c, int32_t node);
  // Clears tokens below `node`, where `depth` bytes of the words [low, high) have been read, that
  // close the string behind a word; with `verify` those that stop inside of one are verified.
  void spell(int32_t node, const std::string_view* low, const std::string_view* high, size_t depth,
             uint32_t escape, bool verify = false);
};

}  // namespace tokops::grammar
