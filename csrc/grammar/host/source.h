// The text of a grammar while it is read: position, code points, literals, and errors with line and
// column.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "regex.h"

namespace tokops::grammar::front {

inline constexpr size_t kMostSource = size_t(16) << 20;  // bytes of a grammar
inline constexpr int kMostNesting = 400;                 // brackets within brackets
inline constexpr int32_t kMostRepeats = 1 << 24;         // of a counted repetition

// How the escapes of a literal are read.
enum class Escapes {
  kAll,  // \n \r \t \f \v \b \0 \\ \/ \" \' \xHH \uHHHH \UHHHHHHHH \u{H..}
  kIso,  // as kAll, but a literal that is one backslash ("\") is that backslash
};

class Source {
 public:
  // Throws where the text is too long or is not UTF-8.
  explicit Source(std::string_view text);

  size_t at = 0;  // offset of the next byte

  bool end() const { return at >= text_.size(); }
  char peek(size_t ahead = 0) const { return at + ahead < text_.size() ? text_[at + ahead] : '\0'; }
  bool starts(std::string_view what) const { return text_.substr(at, what.size()) == what; }
  bool take(std::string_view what) {
    if (!starts(what)) return false;
    at += what.size();
    return true;
  }
  std::string_view slice(size_t from, size_t to) const { return text_.substr(from, to - from); }
  size_t size() const { return text_.size(); }

  uint32_t code_point();               // the next one; not at the end
  std::string shown() const;           // what comes next, for messages
  std::string where(size_t at) const;  // "line:column", both from 1; columns are code points
  void skip_line();                    // up to the next line feed
  void skip_block(std::string_view open, std::string_view close, bool nests);

  uint32_t escape();                    // after a backslash: the code point it stands for
  std::string literal(Escapes how);     // from its opening quote to behind its closing one
  CodePoints char_class();              // from '[' to behind ']'; negated ones as their complement
  std::string regex_body();             // from '/' to behind the closing '/'; the slashes left out
  std::string json_object();            // from '{' to behind the '}' that closes it
  bool at_count() const;                // at {m}, {m,}, {,n} or {m,n}
  std::pair<int32_t, int32_t> count();  // reads it; -1: no bound
  int32_t number();                     // digits

  void check_depth(int depth) const {  // throws BudgetError beyond kMostNesting
    if (depth > kMostNesting) {
      throw BudgetError("nesting", where(at),
                        "nested more than " + std::to_string(kMostNesting) + " deep");
    }
  }
  [[noreturn]] void fail(size_t at, const std::string& keyword, const std::string& reason) const;
  [[noreturn]] void fail(const std::string& reason) const { fail(at, "syntax", reason); }

 private:
  std::string_view text_;
};

// Counts how deep a parser is, and throws BudgetError beyond kMostNesting.
class Nested {
 public:
  Nested(const Source& source, int& depth) : depth_(depth) {
    source.check_depth(depth + 1);
    ++depth_;
  }
  ~Nested() { --depth_; }
  Nested(const Nested&) = delete;

 private:
  int& depth_;
};

// The strings a pattern in the grammar stands for; errors point to where it begins.
Lang read_regex(Langs&, const Source&, size_t at, std::string_view pattern, const RegexOptions&,
                const std::string& keyword = "regex");

void append_utf8(std::string& to, uint32_t code_point);
CodePoints complement(CodePoints);  // within all code points that are not surrogates

}  // namespace tokops::grammar::front
