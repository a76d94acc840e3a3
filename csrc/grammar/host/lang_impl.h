// What is behind Langs: the table of expressions, and the automaton that is read off them.
//
//   lang.cpp            the table, and Langs' own functions
//   lang_facts.cpp      what is known of an expression by its parts
//   lang_build.cpp      constructors, which simplify
//   lang_sets.cpp       unions and intersections
//   lang_step.cpp       derivatives and their rows
//   lang_text.cpp       UTF-8: code points, and which languages are text
//   lang_leaves.cpp     sets of words as trees, explicit and worked-out automata
//   lang_questions.cpp  alive, infinite, same
//   lang_words.cpp      count, shortest, list, lengths
#pragma once
#include <array>
#include <cstring>
#include <unordered_map>

#include "lang.h"

namespace tokops::grammar {

enum class Kind : uint8_t {
  kNothing,
  kEmptyWord,
  kBytes,      // a: index of a ByteSet
  kConcat,     // a, b; a is not a kConcat itself
  kEither,     // items[a], ascending
  kBoth,       // items[a], ascending
  kNot,        // a
  kStar,       // a
  kRepeat,     // a, from lo to hi times (-1: no bound)
  kWords,      // node b of tree a
  kAutomaton,  // state b of automaton a; hi: 1 where it is the complement
  kLoop,       // a: the body, -1 while it is open
};

// What the words of a language do to text: bit 8 * s + t of `ends`: some word leads from s to t.
// Bit s of `fails`: some word is not text from s on. Both may hold too much, never too little.
struct TextMap {
  uint64_t ends = ~uint64_t(0);
  uint8_t fails = 0xff;
  bool operator==(const TextMap&) const = default;
  // All words lead from `state` back between code points.
  bool ends_text(int state) const {
    return !(fails >> state & 1) && (ends >> (8 * state) & 0xff & ~1) == 0;
  }
};
inline constexpr TextMap kTextIdentity = {0x8040201008040201, 0};
inline constexpr TextMap kTextAscii = {0x01, 0xfe};
inline constexpr TextMap kTextNone = {0, 0};
TextMap text_map(const ByteSet&);
TextMap operator*(const TextMap&, const TextMap&);  // the first's words, then the second's

struct Expression {
  Kind kind;
  bool plain = true;     // no kBoth, kNot or kLoop in it: it holds a word unless it is kNothing
  bool looping = false;  // a kLoop in it
  uint8_t fails = 0xff;  // TextMap
  uint16_t depth = 1;    // of nesting, but for the right-hand sides of kConcat
  int32_t a = 0, b = 0, lo = 0, hi = 0;
  const Lang* items = nullptr;
  uint64_t ends = ~uint64_t(0);  // TextMap
  int32_t classes = -1;          // index of the partition of bytes, -1 until asked for
  int32_t shortest = 0;          // no word has fewer bytes
  uint32_t hash = 0;
};

struct Classes {
  uint8_t of[256];
  uint8_t first[256];  // a byte of each class
  int32_t count;
};

struct Tree {
  struct Node {
    int32_t
        first;  // child; the others follow it, by ascending bytes. Of one word: where it goes on
    int32_t words;   // from here on
    uint16_t count;  // of children
    uint8_t byte;    // that leads here
    bool accepts;
    uint8_t text;  // state of UTF-8 here, if all words are text
    int32_t shortest;
  };
  std::vector<Node> nodes;
  std::string words;  // one after the other
  bool is_text = true, is_ascii = true;
};

using Items = std::vector<Lang>;

struct Langs::Impl {
  Impl(Langs& langs, size_t max_bytes);
  ~Impl();

  // Table.
  Lang intern(Expression&, const Lang* items = nullptr, int32_t n = 0);
  int describe(Expression&) const;  // facts
  void* allocate(size_t bytes, size_t align = 8);
  void charge(size_t bytes);
  const Expression& at(Lang lang) const { return expressions[lang]; }
  std::span<const Lang> items(Lang lang) const { return {at(lang).items, size_t(at(lang).a)}; }
  uint8_t facts(Lang lang) const { return langs.facts_[lang].load(std::memory_order_relaxed); }
  void learn(Lang lang, int fact) {
    langs.facts_[lang].fetch_or(uint8_t(fact), std::memory_order_relaxed);
  }
  bool accepts(Lang lang) const { return facts(lang) & kAccepts; }
  bool is(Lang lang, Kind kind) const { return at(lang).kind == kind; }

  // Constructors.
  Lang bytes(const ByteSet&);
  Lang byte(uint8_t);
  Lang word(std::string_view);
  Lang concat(Lang, Lang);
  Lang join(Lang, Lang);  // concat where the first is no kConcat
  Lang either(Items&);
  Lang either(Lang a, Lang b) {
    Items items{a, b};
    return either(items);
  }
  Lang both(Items&);
  Lang both(Lang a, Lang b) {
    Items items{a, b};
    return both(items);
  }
  Lang complement(Lang);
  Lang star(Lang);
  Lang repeat(Lang, int32_t, int32_t);
  bool merge_repeats(Items&);
  bool factor_tails(Items&);
  bool share_heads(Items&, Lang& result);
  void drop_text(Items&, bool union_);
  void gather_complements(Items&, bool union_);
  bool opposites(const Items&, bool union_);
  void drop_weaker(Items&, bool union_);
  Lang of_one_byte(const ByteSet&, Items& others);
  Lang body(Lang lang) const {
    return is(lang, Kind::kStar) || is(lang, Kind::kRepeat) ? at(lang).a : lang;
  }
  bool repeats(Lang lang) const { return is(lang, Kind::kStar) || is(lang, Kind::kRepeat); }
  int32_t least(Lang lang) const {
    return is(lang, Kind::kRepeat) ? at(lang).lo : is(lang, Kind::kStar) ? 0 : 1;
  }
  int32_t most(Lang lang) const {
    return is(lang, Kind::kRepeat) ? at(lang).hi : is(lang, Kind::kStar) ? -1 : 1;
  }

  // Leaves.
  Lang words(std::vector<std::string>&);
  Lang tree_node(int32_t tree, int32_t node);
  Lang automaton(std::shared_ptr<const Automaton>, int32_t state, bool flipped);
  Lang automaton_state(int32_t automaton, int32_t state, bool flipped);

  // Text.
  TextMap text(Lang lang) const { return {at(lang).ends, at(lang).fails}; }
  void build_text();
  Lang code_points(const CodePoints&);
  Lang encoded(CodePoints ranges, uint32_t base, int more, int offset);

  // Automaton.
  int32_t classes_of(Lang);
  int32_t classes_of_bytes(const ByteSet&);
  int32_t intern_classes(const uint8_t* of);
  int32_t meet(int32_t, int32_t);
  void make_row(Lang);
  Lang step(Lang, uint8_t);
  Lang derive(Lang, uint8_t);

  // Questions. Each spends from `left`.
  void spend(int64_t steps = 1);
  bool alive(Lang);
  bool search_alive(Lang);
  bool infinite(Lang);
  bool search_cycle(Lang);
  int64_t count(Lang, int64_t cap);
  int64_t count_at_least(Lang, int64_t cap, int depth);
  std::string shortest(Lang);
  std::vector<std::string> list(Lang, int64_t cap);
  std::string search_shortest(Lang, bool by_characters, bool* loops);
  Lengths lengths(Lang);
  bool plain_lengths(Lang, Lengths&);
  bool same(Lang, Lang);

  Langs& langs;
  mutable std::mutex lock;
  size_t max_bytes, held = 0, capacity = 0;
  int64_t fuel = 2'000'000, left = 0;

  Expression* expressions = nullptr;
  int32_t size = 0;
  std::vector<int32_t> table;  // open addressing, -1 free
  std::vector<ByteSet> sets;
  std::unordered_multimap<uint64_t, int32_t> set_of;
  std::vector<std::unique_ptr<Tree>> trees;
  std::unordered_map<std::string, Lang> tree_roots;
  struct Machine {
    std::shared_ptr<const Automaton> automaton;
    bool ascii;
    int32_t classes;
  };
  std::vector<Machine> machines;
  std::unordered_map<const void*, int32_t> machine_of;
  std::unordered_map<const void*, std::shared_ptr<const Automaton>> tables;  // of a Dfa
  std::vector<std::unique_ptr<Classes>> partitions;
  std::unordered_multimap<uint64_t, int32_t> partition_of;
  std::unordered_map<uint64_t, int32_t> meets;
  std::unordered_map<std::string, Lang> names, of_points;

  char *arena = nullptr, *arena_end = nullptr;
  std::vector<std::unique_ptr<char[]>> blocks;

  Lang every_byte = 0, every_string = 0, one_char = -1;
  Lang byte_langs[256];
  std::array<Lang, kTextStates>
      text_tails{};  // what completes text from each state; text() is the first
  bool has_text = false;
};

inline uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  return x ^ x >> 32;
}

}  // namespace tokops::grammar
