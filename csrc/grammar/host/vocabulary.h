// The tokens of a model as a tree over bytes, in one array in depth-first order.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lang.h"

namespace tokops::grammar {

struct Mask {
  std::vector<uint32_t> words;
  bool has(int32_t t) const { return words[size_t(t) >> 5] >> (t & 31) & 1; }
  void set(int32_t t) { words[size_t(t) >> 5] |= 1u << (t & 31); }
  void clear(int32_t t) { words[size_t(t) >> 5] &= ~(1u << (t & 31)); }
};

// What the tokens below a node do in a lexeme: those that stay inside it, and those that go past
// its end.
enum class LexemeKind : uint8_t {
  kText,
  kRaw
};  // the inside of a JSON string, which ends at "; bytes that end where they may

struct Record {
  struct Ending {
    int32_t token;
    int32_t chars;  // code points before the end
  };
  // Tokens that go on after the end, as a tree of what follows: depth-first, like the vocabulary.
  struct Rest {
    uint8_t byte;
    int32_t end;    // first node after those below
    int32_t first;  // into rest_tokens; the next node's is the end of its own
  };
  Mask inside;  // empty where `few` holds them
  std::vector<int32_t> few;
  std::vector<Ending> closing;  // tokens that end where a string ends
  Mask closing_mask;  // where they are many: those and the ones inside (that `few` does not hold)
  std::vector<Rest> rest;  // node 0 is the root, at the end of the lexeme
  std::vector<Ending> rest_tokens;
  bool given_up = false;  // too many tokens go past the end: the tree is to be walked
  // With counts: tokens inside by the code points they need in all, most first.
  std::vector<std::pair<int32_t, int32_t>> needs;  // (needed, token)
  int32_t longest = 0;                             // code points of a token that closes
  std::mutex lock;
  std::vector<std::shared_ptr<const Mask>> within;  // [r]: tokens inside that need at most r
  size_t bytes() const;
};

class Vocabulary;

// Languages, and records of what the tokens do in them, that grammars share.
class Lexemes {
 public:
  explicit Lexemes(const Vocabulary& v) : vocabulary_(v) {}
  Langs& langs() { return langs_; }
  // follow: of kRaw, the bytes that what comes after the lexeme can begin with; null: any.
  std::shared_ptr<Record> record(Lang, LexemeKind, bool counted, int32_t node,
                                 const ByteSet* follow = nullptr);
  size_t cached_bytes() const { return cached_; }
  bool full() const { return langs_.memory() > kSharedBytes; }

 private:
  // Grammars share a table until it holds kSharedBytes; each may then add its own account.
  static constexpr size_t kSharedBytes = size_t(32) << 20, kLanguageBytes = size_t(256) << 20;
  std::shared_ptr<Record> build(Lang, LexemeKind, bool counted, int32_t node,
                                const ByteSet* follow);
  struct Key {
    Lang lang;
    int32_t node;
    ByteSet follow;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& k) const {
      uint64_t h = uint64_t(uint32_t(k.lang)) << 32 | uint32_t(k.node);
      for (const uint64_t w : k.follow.words) h = (h ^ w) * 0x9e3779b97f4a7c15u;
      return h >> 7;
    }
  };
  const Vocabulary& vocabulary_;  // outlives this: grammars hold both
  Langs langs_{kLanguageBytes};
  std::mutex lock_;
  std::unordered_map<Key, std::shared_ptr<Record>, KeyHash> records_;
  size_t cached_ = 0;
};

class Vocabulary {
 public:
  // tokens[t] = bytes, "" for special and unused ids. width: of a row of logits, at least
  // tokens.size().
  Vocabulary(std::vector<std::string> tokens, std::vector<int32_t> eos, int32_t width,
             size_t cache_bytes);

  int32_t size() const { return int32_t(tokens_.size()); }
  int32_t width() const { return width_; }
  int32_t words() const { return (width_ + 31) / 32; }
  const std::string& token(int32_t t) const { return tokens_[size_t(t)]; }
  const std::vector<int32_t>& eos() const { return eos_; }
  bool is_eos(int32_t t) const;

  // Node 0 is the root; the first child of i is i + 1 where end[i] > i + 1, and the next sibling of
  // c is end[c].
  int32_t nodes() const { return int32_t(byte_.size()); }
  const uint8_t* bytes() const { return byte_.data(); }
  const int32_t* ends() const { return end_.data(); }
  const uint32_t* groups() const { return groups_.data(); }  // of bytes that occur below
  // order[first[i] .. first[i + 1]) are the tokens that end at node i, order[first[i] ..
  // first[end[i]]) those below.
  const int32_t* first_tokens() const { return first_.data(); }
  const int32_t* order() const { return order_.data(); }
  int32_t longest() const { return longest_; }
  // The child of the root, or of a child of it, by a byte; 0: none. Their children lie far apart.
  int32_t child(int32_t node, uint8_t b) const {
    return children_[size_t(node == 0 ? 256 : byte_[size_t(node)]) * 256 + b];
  }
  bool indexed(int32_t node) const { return node == 0 || parent_[size_t(node)] == 0; }
  int32_t parent(int32_t node) const { return parent_[size_t(node)]; }
  int32_t chars(int32_t token) const {
    return chars_[size_t(token)];
  }  // code points that begin in it

  // Where grammars that are compiled now keep their languages. When it has grown to its bound,
  // later grammars get a new one; the old one lives as long as grammars that use it.
  std::shared_ptr<Lexemes> lexemes();
  size_t cache_bytes() const { return cache_bytes_; }

 private:
  std::vector<std::string> tokens_;
  std::vector<int32_t> eos_;
  int32_t width_, longest_ = 0;
  std::vector<uint8_t> byte_;
  std::vector<int32_t> chars_;
  std::vector<int32_t> end_, first_, order_, parent_;
  std::vector<uint32_t> groups_;
  std::vector<int32_t> children_;
  std::mutex lock_;
  std::shared_ptr<Lexemes> lexemes_;
  size_t cache_bytes_;
};

}  // namespace tokops::grammar
