// A text, byte by byte, against a grammar: every way to read it is one configuration, and each can
// be completed, so that a byte is allowed exactly where a configuration takes it.
//
// A configuration is a lexeme that is being read (a string, a number, a key, the bytes of a rule)
// or a place between lexemes, on top of a stack of frames: objects with the keys they have, arrays
// with their items, and calls of rules. Frames are shared between configurations and never changed.
// Calls of rules form a graph, as in Earley's algorithm: one node for a rule and the place where it
// starts.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "items.h"
#include "rules.h"
#include "schema.h"
#include "vocabulary.h"

namespace tokops::grammar {

// A grammar, ready to be matched. Not changed once it is made; matchers on several threads share
// it.
class Grammar {
 public:
  struct Edge {
    Symbol symbol;
    int32_t next;
  };
  struct State {
    std::vector<Edge> edges;
    bool ends = false;
  };
  // One schema alone, or rules (which may hold schemas).
  Grammar(std::shared_ptr<Vocabulary>, std::shared_ptr<Lexemes>, std::shared_ptr<Schema>);
  Grammar(std::shared_ptr<Vocabulary>, std::shared_ptr<Lexemes>, const Rules&,
          std::vector<std::shared_ptr<Schema>>);

  const std::shared_ptr<Vocabulary>& vocabulary() const { return vocabulary_; }
  Langs& langs() const { return lexemes_->langs(); }
  Langs::Account& account() const { return account_; }  // what its matchers add to the languages
  Lexemes& lexemes() const { return *lexemes_; }
  bool has_rules() const { return !starts_.empty(); }
  const State& state(int32_t s) const { return states_[size_t(s)]; }
  int32_t start_of(int32_t rule) const { return starts_[size_t(rule)]; }
  int32_t start() const { return start_; }
  const Schema& schema(int32_t i) const { return *schemas_[size_t(i)]; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  bool space(uint8_t b) const { return b == ' ' || (all_space_ && (b == '\t' || b == '\n')); }
  int32_t most_space() const { return most_space_; }
  bool schema_order() const { return schema_order_; }
  bool watched() const { return watched_; }                // some array of a schema is
  Lang space_language() const { return space_language_; }  // any number of whitespace characters

 private:
  void options_of(const Schema&);
  std::shared_ptr<Vocabulary> vocabulary_;
  std::shared_ptr<Lexemes> lexemes_;
  std::vector<std::shared_ptr<Schema>> schemas_;
  std::vector<State> states_;
  std::vector<int32_t> starts_;
  int32_t start_ = 0, most_space_ = 64;
  Lang space_language_ = kEmptyWord;
  bool all_space_ = true, schema_order_ = false, watched_ = false;
  std::vector<std::string> warnings_;
  mutable Langs::Account account_;
};

// Listed::state of a value that the present item of an array leaves to later ones.
inline constexpr int32_t kReserved = -2;

enum class Phase : uint8_t {
  kValue,       // a value may start; id: goal
  kString,      // id: goal, index: which of its strings, lang, escape, count: code points so far
  kNumber,      // lang
  kLiteral,     // lang: what is left of true, false, null
  kObjectOpen,  // after {
  kObjectNext,  // after , in an object
  kKey,         // a named key: id: node of the tree of names, escape
  kOtherKey,    // a key of a class: index: which, lang, escape, start: of its text
  kAfterKey,    // id: goal of the value
  kArrayOpen,   // after [
  kAfterValue,  // in an object or an array
  kRule,        // lang, id: state of the rule after it
  kDone,
};

struct Config {
  Phase phase;
  uint8_t index = 0;
  uint16_t space = 0;  // whitespace so far
  int32_t id = 0;
  Lang lang = 0;
  uint32_t escape = 0;
  int32_t count = 0;
  int32_t start = 0;
  uint32_t frame = 0;
  bool operator==(const Config&) const = default;
};

struct Frame {
  enum Kind : uint8_t {
    kRoot,
    kObject,
    kArray,
    kCall,
    kSchema,
    kJoin
  } kind;                 // kJoin: a value of several frames
  bool returned = false;  // kCall: has come to its end where it began
  uint16_t schema = 0;
  uint32_t parent = 0;  // kCall: none
  const void* shape = nullptr;
  int32_t count = 0;    // members or items so far
  int32_t missing = 0;  // kObject: required names to come; kSchema: state of the rule to go on with
  uint32_t served = 0;  // kObject: bits of `some`
  int32_t order = -1;   // kObject: of the last name; kCall: see top_of
  uint32_t words = 0;   // kObject: seen names; kArray: counts
  uint32_t list = 0;  // kObject: other keys, kArray: items (unique), kCall: edges, kJoin: frames; 1
                      // + index, 0: none
  int32_t start = 0;  // kArray: of the item that is being read; kCall: where the rule began
  int32_t rule = 0;   // kCall
};

inline const ObjectShape& object_of(const Frame& f) {
  return *static_cast<const ObjectShape*>(f.shape);
}
inline const ArrayShape& array_of(const Frame& f) {
  return *static_cast<const ArrayShape*>(f.shape);
}

class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Grammar>);

  const Grammar& grammar() const { return *grammar_; }
  const std::shared_ptr<const Grammar>& shared() const { return grammar_; }

  // --- tokens
  bool accept(int32_t token);
  bool allows(int32_t token);     // what accept would say
  void rollback(int32_t tokens);  // throws std::out_of_range
  int32_t accepted() const { return int32_t(history_.size()); }
  bool accept_bytes(std::string_view, size_t* taken = nullptr);  // counts as one token
  bool complete() const;               // the text so far is in the language
  bool done() const { return done_; }  // an end token was accepted
  std::string jump_forward();          // bytes that must come next
  void fill(uint32_t* mask);           // words() words, all are written
  std::string allowed_bytes();         // those that may come next
  std::string expected();              // in words
  std::string_view text() const { return bytes_; }
  void reset();

  // --- bytes, and back: what masks are made of
  bool push(uint8_t b);
  void pop(size_t bytes);
  size_t depth() const { return marks_.size() - 1; }
  const Config* begin() const { return configs_.data() + marks_.back().configs; }
  const Config* end() const { return configs_.data() + configs_.size(); }
  const Frame& frame(uint32_t f) const { return frames_[f]; }

 private:
  class Trial;
  friend class MaskFiller;
  friend class DeviceTables;
  struct Mark {
    uint32_t configs, frames, words, list, bytes;
  };
  struct Listed {    // a list of what a frame has
    uint32_t next;   // 1 + index, 0: none
    uint32_t frame;  // kCall: the caller's frame; kJoin: one of the frames
    int32_t state;   // kCall: where it goes on; kArray: kReserved, of what only later items may be
    std::string text;  // a key, or an item in canonical form
  };
  struct Accepted {
    uint32_t mark;  // index of the state before it
    bool eos;
  };

  Mark mark() const;
  void restore(const Mark&);
  void add(const Config&);
  uint32_t add_frame(const Frame&);
  void advance(const Config&, uint8_t b);
  void begin_value(const Config&, uint8_t b);
  void begin_key(uint32_t frame);
  void end_key(const Config&, int32_t name);
  void after_member(uint32_t frame, int32_t name, const std::vector<Goal>& goal_if, Goal goal,
                    const std::string* other);
  bool name_allowed(const Frame&, const ObjectShape&, int32_t name) const;
  bool any_allowed(const Frame&, const ObjectShape&, int32_t low, int32_t high) const;
  bool class_allowed(const Frame&, const ObjectShape&, int32_t index) const;
  bool members_can_end(const Frame&, const ObjectShape&, int32_t name, uint32_t served) const;
  bool object_closes(const Frame&) const;
  bool array_closes(const Frame&) const;
  bool array_goes_on(const Frame&) const;
  void begin_item(uint32_t frame, int32_t b);  // b < 0: the item starts later
  void expect(Goal, uint32_t frame, int32_t b);
  void begin_expected();
  void end_value(uint32_t frame);
  void string_byte(Config, uint8_t b);
  bool listed(const Frame&, std::string_view text) const;  // among its keys or items
  bool is_other_key(const Frame&, const ObjectShape&, const std::string& key) const;
  // Items of unique arrays: matcher_items.cpp.
  std::optional<std::vector<std::string>> string_values(const Config&, std::string_view text,
                                                        size_t most);
  std::optional<std::vector<std::string>> scalar_values(const Config&, std::string_view text);
  std::vector<std::string> items_like(const Frame& array, std::string_view text) const;
  bool fresh(const Config&, uint32_t array);
  uint32_t without_reserved(uint32_t list) const;
  bool reserve(const Frame& array, uint32_t* list);
  void reserve_counted(Frame& array, Goal);
  bool takes_many(const Frame&) const;
  bool some_takes_many(const Config&, const std::vector<uint32_t>& path) const;
  bool watches(uint32_t frame, const std::vector<uint32_t>& path) const;
  template <class Grows>
  bool some_way_up(uint32_t frame, std::vector<uint32_t>& path, const Grows&);
  // Not in an item of a watched array, or in one that differs from the others in the end whatever
  // the lexeme becomes.
  bool free_beside(const Config&);
  bool may_differ(const Config&, const std::string* leaf);
  bool completes_new(const Config&, const Frame& array, const std::vector<uint32_t>& path,
                     const BegunText&, const std::string* leaf);
  void drop_repeated(size_t first);
  std::vector<std::string> values_at(const Frame& array, const BegunText&) const;
  std::vector<std::pair<std::string, bool>> strings_like(const Config&);
  bool new_key(const Config&);
  void enter(int32_t state, uint32_t call);
  void go_on(int32_t state, uint32_t call);
  void return_from(uint32_t call);
  uint32_t top_of(uint32_t call);
  void start();

  std::shared_ptr<const Grammar> grammar_;
  std::vector<Config> configs_;
  std::vector<Frame> frames_;
  std::vector<uint64_t> words_;
  std::vector<Listed> list_;
  std::string bytes_;
  std::vector<Mark> marks_;  // one per byte since the start; back(): where the present state begins
  std::vector<Accepted> history_;
  std::vector<std::pair<int32_t, uint32_t>> entered_;  // at this byte: (state, call)
  std::vector<std::pair<int32_t, uint32_t>> agenda_;   // of those, what is still to be looked at
  struct Expected {
    Goal goal;
    uint32_t frame;
    int32_t byte;  // that the value begins with, or -1: it begins later
  };
  std::vector<Expected> expected_;  // at this byte: values, before those of one goal are joined
  bool done_ = false;
  bool unknown_item_ = false;  // what is in an item now is not in bytes_ as a whole: whether it is
  int64_t unchecked_ = 0;      // there already is not asked, but counted
};

// Masks of draft trees: parents[i] < i or -1, tokens[i] the token at node i; row i of `mask` is
// what may follow node i (all clear where the node itself isn't allowed, or its token is -1).
void fill_tree(Matcher&, const int32_t* parents, const int32_t* tokens, int32_t n, uint32_t* mask);

}  // namespace tokops::grammar
