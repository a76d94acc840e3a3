// A regular expression as a tree, and the sets of characters it is made of.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "regex.h"

namespace tokops::grammar {

struct Pattern {
  enum Kind : uint8_t {
    kText,      // `text`; "" for nothing
    kSet,       // a code point out of `set`
    kSequence,  // `parts`
    kChoice,    // one of `parts`
    kRepeat,    // parts[0], from lo to hi times (-1: no bound)
    kAhead,     // what follows does (`negative`: does not) begin with parts[0]
    kBehind,    // the character before is (not) in `set`; with `begin` the start will do too
    kBegin,
    kEnd,
    kLastEnd,   // the end, or before a last newline (Python's $)
    kBoundary,  // between a word's character and something else (or not)
  };
  struct Node {
    Kind kind;
    bool negative = false, begin = false;
    bool asserts = false;     // has an assertion inside
    bool contextual = false;  // has one that looks back
    bool consumes = false;    // never matches ""
    int32_t lo = 0, hi = 0;
    std::vector<int32_t> parts = {};
    std::string text = {};
    CodePoints set = {};
  };
  std::vector<Node> nodes;
  int32_t root = 0;
};

Pattern parse_pattern(std::string_view source, const RegexOptions&, const std::string& keyword,
                      const std::string& pointer);

// Sets of code points: sorted, disjoint, not adjacent.
CodePoints united(CodePoints);
CodePoints inverted(const CodePoints&);
CodePoints common(const CodePoints&, const CodePoints&);
CodePoints with_cases(const CodePoints&);  // and all that differ from them only by case
bool contains(const CodePoints&, uint32_t);

CodePoints digits(bool unicode), word_characters(bool unicode), spaces(bool python), line_ends();

// \p{name}, \p{name=value}. Throws std::invalid_argument for what is not known.
CodePoints property(std::string_view name, std::string_view value);

void append_utf8(std::string&, uint32_t);
// The code point at `i`, which is moved behind it; -1 where the bytes are not UTF-8.
int32_t next_code_point(std::string_view, size_t& i);

}  // namespace tokops::grammar
