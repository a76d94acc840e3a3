// Regular languages over bytes: expressions that are kept once each, and stepped by derivatives.
//
// A language is an index into a `Langs`. Two expressions that are built alike have one index, so a
// state of an automaton is an index too: `step` gives the language of what may follow a byte, and
// is worked out when it is first asked for (Brzozowski, "Derivatives of regular expressions", 1964;
// Owens, Reppy, Turon, 2009). Intersection and complement cost no more than union.
#pragma once
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "error.h"

namespace tokops::grammar {

using Lang = int32_t;
inline constexpr Lang kNothing = 0;    // no word
inline constexpr Lang kEmptyWord = 1;  // "" alone

// A set of bytes.
struct ByteSet {
  uint64_t words[4] = {};
  void add(uint8_t b) { words[b >> 6] |= uint64_t(1) << (b & 63); }
  void add(uint8_t first, uint8_t last) {
    for (int b = first; b <= last; ++b) add(uint8_t(b));
  }
  bool has(uint8_t b) const { return words[b >> 6] >> (b & 63) & 1; }
  bool operator==(const ByteSet&) const = default;
};

// An explicit automaton: rows of 256 targets, -1 where there is none.
struct Dfa {
  std::vector<int32_t> targets;  // [states * 256]
  std::vector<uint8_t> accepting;
};

// An automaton that is worked out while it is walked, for what counts or calculates. Every state
// that it gives must lead to an accepting one, and none may hold every string.
struct Automaton {
  virtual ~Automaton() = default;
  virtual int32_t step(int32_t state, uint8_t b) const = 0;  // -1: nothing follows
  virtual bool accepts(int32_t state) const = 0;
  virtual bool holds_all(int32_t) const { return false; }     // every byte string: only a Dfa may
  virtual bool ascii() const { return false; }                // all words are ASCII
  virtual const uint8_t* classes() const { return nullptr; }  // [256] bytes that step alike
};

// Where UTF-8 text may stand between two bytes: 0 between code points, 1 to 3 that many bytes short
// of one, and 4 to 7 after E0, ED, F0 and F4, which restrict the next byte.
inline constexpr int kTextStates = 8;
int text_step(int state, uint8_t b);  // -1: not text

using CodePoints = std::vector<std::pair<uint32_t, uint32_t>>;  // inclusive ranges

// Numbers of code points in the words of a language over UTF-8 text.
struct Lengths {
  int32_t shortest;  // -1: there is no word
  bool all_longer;   // every number from the shortest on occurs
};

// Reading is safe from several threads, and so is `step`, which may add to the table; the functions
// that build languages take the same lock. Throws BudgetError where the table would grow past its
// bound, or where a question (alive, count, lengths) needs more steps than `fuel`.
class Langs {
 public:
  explicit Langs(size_t max_bytes = size_t(64) << 20);
  ~Langs();
  Langs(const Langs&) = delete;

  Lang bytes(const ByteSet&);
  Lang word(std::string_view);
  Lang words(std::vector<std::string>);  // any of them: kept as a tree, so that a step is cheap
  Lang concat(Lang, Lang);
  Lang concat(std::initializer_list<Lang>);
  Lang either(std::vector<Lang>);
  Lang both(std::vector<Lang>);  // intersection
  Lang complement(Lang);         // within all byte strings
  Lang minus(Lang a, Lang b) { return both({a, complement(b)}); }
  Lang star(Lang);
  Lang optional(Lang a) { return either({kEmptyWord, a}); }
  Lang repeat(Lang, int32_t at_least, int32_t at_most);  // at_most -1: no bound
  Lang dfa(std::shared_ptr<const Dfa>, int32_t start);
  Lang automaton(std::shared_ptr<const Automaton>, int32_t state);

  // A language that is used before it is known: X = open_loop(..), then body(X), then close_loop.
  // In the body X may only stand behind at least one byte. is_text: all its words are UTF-8 text.
  Lang open_loop(bool accepts_empty, bool is_text);
  void close_loop(Lang loop, Lang body);

  Lang any_bytes();                     // every byte string
  Lang text();                          // every string of UTF-8 (no surrogates)
  Lang any_char();                      // one code point
  Lang code_points(const CodePoints&);  // one code point out of these

  // The language of what may follow byte b. Lock-free once it is known.
  Lang step(Lang lang, uint8_t b) {
    const State& state = states_[lang];
    const uint8_t* classes = state.classes.load(std::memory_order_acquire);
    if (classes) {
      Lang next = state.targets[classes[b]].load(std::memory_order_acquire);
      if (next >= 0) return next;
    }
    return new_step(lang, b);
  }
  Lang steps(Lang, std::string_view);
  bool accepts(Lang lang) const { return facts_[lang].load(std::memory_order_relaxed) & kAccepts; }
  const uint8_t* classes(Lang);  // [256]: bytes of one class step alike

  bool alive(Lang lang) {  // holds any word (kept once known)
    uint8_t known = facts_[lang].load(std::memory_order_relaxed) & (kAlive | kDead);
    return known ? known == kAlive : find_alive(lang);
  }
  bool infinite(Lang);
  int64_t count(Lang, int64_t cap);                  // number of words, at most cap
  std::string shortest(Lang);                        // a shortest word; alive(lang) must hold
  std::vector<std::string> list(Lang, int64_t cap);  // all words of a finite language, at most cap
  Lengths lengths(Lang);      // in code points; all_longer only where it is certain
  bool same(Lang a, Lang b);  // hold the same words

  size_t size() const;           // languages so far
  size_t memory() const;         // bytes held
  void set_fuel(int64_t steps);  // of one question

  // What one of those who share the table adds to it, so that none takes all there is.
  struct Account {
    size_t used = 0, most = size_t(48) << 20;
  };
  // As long as it lives, what this thread adds is charged to an account. Throws BudgetError where
  // that is overdrawn.
  class Charged {
   public:
    explicit Charged(Account&);
    ~Charged();
    Charged(const Charged&) = delete;

   private:
    Account* before_;
  };

  // What fewest_chars has found.
  struct Chars {
    std::mutex lock;
    std::unordered_map<Lang, int32_t> of;
  };
  Chars chars;

  // Languages by name, for what is dear to build.
  std::optional<Lang> named(const std::string& name);
  Lang keep(const std::string& name, Lang);

 private:
  enum Fact : uint8_t { kAccepts = 1, kAlive = 2, kDead = 4, kInfinite = 8, kFinite = 16 };
  struct State {  // a row: targets[classes[b]], -1 where not known yet
    std::atomic<const uint8_t*> classes;
    std::atomic<int32_t>* targets;
  };
  Lang new_step(Lang, uint8_t b);
  bool find_alive(Lang);

  State* states_ = nullptr;  // at fixed addresses, as many as max_bytes may hold
  std::atomic<uint8_t>* facts_ = nullptr;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokops::grammar
