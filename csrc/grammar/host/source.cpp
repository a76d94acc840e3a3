#include "source.h"

#include <algorithm>
#include <cctype>

namespace tokops::grammar::front {
namespace {

constexpr uint32_t kLastCodePoint = 0x10ffff;

bool is_surrogate(uint32_t c) { return c >= 0xd800 && c <= 0xdfff; }

// Bytes of the well-formed code point at the start of s, or 0.
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return i < s.size() ? uint8_t(s[i]) : uint8_t(0); };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const uint8_t b = byte(0);
  if (b < 0x80) return 1;
  if (b >= 0xc2 && b <= 0xdf) return follows(1) ? 2 : 0;
  if (b >= 0xe0 && b <= 0xef) {
    const bool bad = (b == 0xe0 && byte(1) < 0xa0) || (b == 0xed && byte(1) > 0x9f);
    return !bad && follows(1) && follows(2) ? 3 : 0;
  }
  if (b >= 0xf0 && b <= 0xf4) {
    const bool bad = (b == 0xf0 && byte(1) < 0x90) || (b == 0xf4 && byte(1) > 0x8f);
    return !bad && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

void append_utf8(std::string& to, uint32_t c) {
  if (c < 0x80) {
    to += char(c);
  } else if (c < 0x800) {
    to += {char(0xc0 | c >> 6), char(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    to += {char(0xe0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  } else {
    to += {char(0xf0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)),
           char(0x80 | (c & 63))};
  }
}

CodePoints complement(CodePoints ranges) {
  ranges.emplace_back(0xd800, 0xdfff);
  std::sort(ranges.begin(), ranges.end());
  CodePoints rest;
  uint32_t next = 0;
  for (const auto& [first, last] : ranges) {
    if (first > next) rest.emplace_back(next, first - 1);
    next = std::max(next, last + 1);
  }
  if (next <= kLastCodePoint) rest.emplace_back(next, kLastCodePoint);
  return rest;
}

Lang read_regex(Langs& langs, const Source& source, size_t at, std::string_view pattern,
                const RegexOptions& options, const std::string& keyword) {
  try {
    return regex(langs, pattern, options, keyword);
  } catch (const BudgetError& error) {
    throw BudgetError(error.keyword, source.where(at), error.reason);
  } catch (const GrammarError& error) {
    throw GrammarError(error.keyword, source.where(at), error.reason);
  }
}

Source::Source(std::string_view text) : text_(text) {
  if (text.size() > kMostSource) {
    throw BudgetError("size", "1:1",
                      "the grammar has more than " + std::to_string(kMostSource) + " bytes");
  }
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text.substr(i));
    if (!length) fail(i, "encoding", "the grammar is not UTF-8");
    i += length;
  }
  take("\xef\xbb\xbf");
}

uint32_t Source::code_point() {
  const uint8_t b = uint8_t(text_[at]);
  const size_t length = utf8_length(text_.substr(at));
  uint32_t c = length == 1 ? b : b & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) c = c << 6 | (uint8_t(text_[at + i]) & 63);
  at += length;
  return c;
}

std::string Source::shown() const {
  if (end()) return "the end of the grammar";
  if (peek() == '\n' || peek() == '\r') return "the end of the line";
  Source copy = *this;
  std::string c;
  append_utf8(c, copy.code_point());
  return "'" + c + "'";
}

std::string Source::where(size_t offset) const {
  offset = std::min(offset, text_.size());
  size_t line = 1, column = 1;
  for (size_t i = 0; i < offset; ++i) {
    if (text_[i] == '\n') {
      ++line;
      column = 1;
    } else if ((text_[i] & 0xc0) != 0x80) {
      ++column;
    }
  }
  return std::to_string(line) + ":" + std::to_string(column);
}

void Source::fail(size_t offset, const std::string& keyword, const std::string& reason) const {
  throw GrammarError(keyword, where(offset), reason);
}

void Source::skip_line() {
  while (!end() && text_[at] != '\n') ++at;
}

void Source::skip_block(std::string_view open, std::string_view close, bool nests) {
  const size_t from = at;
  int64_t depth = 0;
  do {
    if (end()) fail(from, "syntax", "the comment is not closed");
    if (take(close)) {
      --depth;
    } else if ((depth == 0 || nests) && take(open)) {
      ++depth;
    } else {
      ++at;
    }
  } while (depth > 0);
}

uint32_t Source::escape() {
  const size_t from = at - 1;
  const auto digits = [&](int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; ++i) {
      const int digit = hex_value(peek());
      if (digit < 0) {
        fail(from, "escape", "the escape needs " + std::to_string(count) + " hexadecimal digits");
      }
      value = value << 4 | uint32_t(digit);
      ++at;
    }
    return value;
  };
  uint32_t c = 0;
  if (end()) fail(from, "escape", "a backslash ends the grammar");
  switch (const char kind = text_[at++]) {
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case 'b':
      return '\b';
    case '0':
      return '\0';
    case '\\':
    case '"':
    case '\'':
    case '/':
    case '[':
    case ']':
    case '^':
    case '-':
      return uint32_t(kind);
    case 'x':
      c = digits(2);
      break;
    case 'U':
      c = digits(8);
      break;
    case 'u':
      if (take("{")) {
        while (hex_value(peek()) >= 0 && c <= kLastCodePoint)
          c = c << 4 | uint32_t(hex_value(text_[at++]));
        if (!take("}")) fail(from, "escape", "\\u{ needs hexadecimal digits up to 10ffff and a }");
      } else {
        c = digits(4);
        if (c >= 0xd800 && c <= 0xdbff && starts("\\u")) {
          at += 2;
          const uint32_t low = digits(4);
          if (low < 0xdc00 || low > 0xdfff)
            fail(from, "escape", "a lone surrogate is no character");
          c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
      }
      break;
    default: {
      --at;
      std::string shown_escape = "\\";
      append_utf8(shown_escape, code_point());
      fail(from, "escape", "there is no escape " + shown_escape);
    }
  }
  if (c > kLastCodePoint) fail(from, "escape", "the number is beyond 10ffff");
  if (is_surrogate(c)) fail(from, "escape", "a lone surrogate is no character");
  return c;
}

std::string Source::literal(Escapes how) {
  const size_t from = at;
  const char quote = text_[at++];
  if (how == Escapes::kIso && peek() == '\\' && peek(1) == quote && peek(2) != quote) {
    at += 2;
    return "\\";
  }
  std::string word;
  while (true) {
    if (end()) fail(from, "syntax", "the literal is not closed");
    const char c = text_[at++];
    if (c == quote) return word;
    if (c == '\\') {
      append_utf8(word, escape());
    } else {
      word += c;
    }
  }
}

CodePoints Source::char_class() {
  const size_t from = at++;
  const bool negated = take("^");
  CodePoints ranges;
  const auto member = [&] {
    if (end()) fail(from, "character class", "the class is not closed");
    if (starts("#x") && hex_value(peek(2)) >= 0) {
      fail(at, "character class",
           "#x in a class could be a number or two characters: write \\x.. or \\#");
    }
    if (starts("\\#")) return at += 2, uint32_t('#');
    return take("\\") ? escape() : code_point();
  };
  while (!take("]")) {
    const size_t begin = at;
    const uint32_t first = member();
    uint32_t last = first;
    if (peek() == '-' && peek(1) != ']' && at + 1 < text_.size()) {
      ++at;
      last = member();
      if (last < first) fail(begin, "character class", "the range runs backwards");
    }
    ranges.emplace_back(first, last);
  }
  if (negated) return complement(std::move(ranges));
  if (ranges.empty()) fail(from, "character class", "the class is empty");
  return ranges;
}

std::string Source::regex_body() {
  const size_t from = at++;
  while (peek() != '/' || end()) {
    if (end() || text_[at] == '\n') fail(from, "syntax", "the regular expression is not closed");
    at += peek() == '\\' && at + 1 < text_.size() && peek(1) != '\n' ? 2 : 1;
  }
  ++at;
  return std::string(slice(from + 1, at - 1));
}

std::string Source::json_object() {
  const size_t from = at;
  int64_t depth = 0;
  do {
    if (end()) fail(from, "syntax", "the JSON object is not closed");
    const char c = text_[at++];
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c != '"') continue;
    const size_t quote = at - 1;
    while (!end() && text_[at] != '"') at += text_[at] == '\\' ? 2 : 1;
    if (end()) {
      at = quote;
      fail(quote, "syntax", "the JSON string is not closed");
    }
    ++at;
  } while (depth > 0);
  return std::string(slice(from, at));
}

bool Source::at_count() const {
  if (peek() != '{') return false;
  size_t i = 1;
  bool digits = false;
  const auto spaces = [&] {
    while (peek(i) == ' ' || peek(i) == '\t') ++i;
  };
  const auto some = [&] {
    for (; std::isdigit(uint8_t(peek(i))); ++i) digits = true;
  };
  spaces();
  some();
  spaces();
  if (peek(i) == ',') {
    ++i;
    spaces();
    some();
    spaces();
  }
  return digits && peek(i) == '}';
}

int32_t Source::number() {
  const size_t from = at;
  int64_t value = 0;
  for (; std::isdigit(uint8_t(peek())); ++at) {
    value = value * 10 + (peek() - '0');
    if (value > kMostRepeats) {
      throw BudgetError("repetition", where(from),
                        "counts go up to " + std::to_string(kMostRepeats));
    }
  }
  if (at == from) fail("expected a number, found " + shown());
  return int32_t(value);
}

std::pair<int32_t, int32_t> Source::count() {
  const size_t from = at++;
  const auto spaces = [&] {
    while (peek() == ' ' || peek() == '\t') ++at;
  };
  spaces();
  int32_t least = std::isdigit(uint8_t(peek())) ? number() : 0, most = least;
  spaces();
  if (take(",")) {
    spaces();
    most = std::isdigit(uint8_t(peek())) ? number() : -1;
    spaces();
  }
  take("}");
  if (most >= 0 && most < least) fail(from, "repetition", "the count runs backwards");
  return {least, most};
}

}  // namespace tokops::grammar::front
