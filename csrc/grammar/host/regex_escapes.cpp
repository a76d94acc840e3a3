// Escapes and bracketed classes of regular expressions.
#include <algorithm>
#include <stdexcept>

#include "regex_parser.h"

namespace tokops::grammar {

bool PatternParser::hex(int count, uint32_t& value) {
  if (at + count > source.size()) return false;
  value = 0;
  for (int i = 0; i < count; ++i) {
    char c = source[at + i];
    int digit = c >= '0' && c <= '9'                 ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                     : -1;
    if (digit < 0) return false;
    value = value * 16 + digit;
  }
  at += count;
  return true;
}

// \uXXXX, \u{X..}; pairs of surrogates are one code point.
uint32_t PatternParser::unicode_escape(size_t start) {
  uint32_t c, low;
  if (!options.python && take("{")) {
    c = 0;
    size_t first = at;
    while (!done() && source[at] != '}') {
      uint32_t digit;
      if (!hex(1, digit)) fail("a hexadecimal digit is missing", at);
      c = c * 16 + digit;
      if (c > 0x10ffff) fail("a code point is past 10FFFF", start);
    }
    if (at == first || !take("}")) fail("\\u{..} is not complete", start);
    return c;
  }
  if (!hex(4, c)) fail("\\u wants four hexadecimal digits", start);
  if (c >= 0xd800 && c <= 0xdbff && ahead("\\u")) {
    size_t before = at;
    at += 2;
    if (hex(4, low) && low >= 0xdc00 && low <= 0xdfff)
      return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    at = before;
  }
  return c;
}

// Sets by a letter: true where it is one.
bool PatternParser::class_escape(CodePoints& points, size_t start) {
  char letter = source[at];
  switch (letter) {
    case 'd':
    case 'D':
      points = digits(options.python);
      break;
    case 'w':
    case 'W':
      points = word_characters(options.python);
      if (ignore_case) points = with_cases(points);
      break;
    case 's':
    case 'S':
      points = spaces(options.python);
      break;
    case 'p':
    case 'P': {
      if (options.python) fail("\\p is not known in this dialect: it stands", start);
      ++at;
      size_t end = source.find('}', at);
      if (!ahead("{") || end == std::string_view::npos) fail("\\p wants a name in braces", start);
      std::string_view inside = source.substr(at + 1, end - at - 1), name = inside, value;
      if (size_t equals = inside.find('='); equals != std::string_view::npos)
        name = inside.substr(0, equals), value = inside.substr(equals + 1);
      bool negative = letter == 'P';
      if (inside.starts_with("^")) fail("\\p{^..} is not supported: it stands", start);
      try {
        points = property(name, value);
      } catch (const std::invalid_argument&) {
        fail("the property '" + std::string(inside) + "' is not known: it stands", start);
      }
      if (negative) points = inverted(points);
      at = end + 1;
      return true;
    }
    default:
      return false;
  }
  if (letter < 'a') points = inverted(points);
  ++at;
  return true;
}

// One character by an escape, inside of brackets or outside.
uint32_t PatternParser::character_escape(size_t start, bool in_class) {
  char c = source[at];
  uint32_t value;
  switch (c) {
    case 't':
      ++at;
      return '\t';
    case 'n':
      ++at;
      return '\n';
    case 'v':
      ++at;
      return '\v';
    case 'f':
      ++at;
      return '\f';
    case 'r':
      ++at;
      return '\r';
    case 'x':
      ++at;
      if (!hex(2, value)) fail("\\x wants two hexadecimal digits", start);
      return value;
    case 'u':
      ++at;
      return unicode_escape(start);
    case 'c': {
      ++at;
      char letter = done() ? 0 : source[at];
      if ((letter | 32) < 'a' || (letter | 32) > 'z') fail("\\c wants a letter", start);
      ++at;
      return letter & 31;
    }
    case 'U':
      if (!options.python) break;
      ++at;
      if (!hex(8, value) || value > 0x10ffff) fail("\\U wants eight hexadecimal digits", start);
      return value;
    case 'a':
      if (!options.python) break;
      ++at;
      return '\a';
    default:
      break;
  }
  if (c >= '0' && c <= '7') {  // octal, as in annex B; \0 is the usual case
    value = 0;
    for (int i = 0; i < 3 && !done() && source[at] >= '0' && source[at] <= '7' &&
                    value * 8 + (source[at] - '0') < 256;
         ++i)
      value = value * 8 + uint32_t(source[at++] - '0');
    return value;
  }
  if ((c >= '8' && c <= '9') || (c | 32) < 'a' || (c | 32) > 'z' || (in_class && c == '-'))
    return uint32_t(next());
  fail(std::string("the escape \\") + c + " is not supported: it stands", start);
}

int32_t PatternParser::escape(size_t start) {
  if (done()) fail("a pattern ends in a backslash", start);
  char c = source[at];
  if (c == 'b' || c == 'B') {
    ++at;
    return assertion(Pattern::kBoundary, c == 'B');
  }
  if (options.python && (c == 'A' || c == 'Z')) {
    ++at;
    return assertion(c == 'A' ? Pattern::kBegin : Pattern::kEnd);
  }
  if (c == 'k' && has_names) fail("a back-reference is not supported: it stands", start);
  if (c == 'k') {
    ++at;
    return character('k');
  }
  if (c >= '1' && c <= '9') {
    size_t before = at;
    int64_t n;
    number(n);
    if (n <= groups) fail("a back-reference is not supported: it stands", start);
    at = before;
  }
  CodePoints points;
  if (class_escape(points, start)) return set(std::move(points));
  return character(character_escape(start, false));
}

// [..]. A hyphen beside a class like \w stands for itself.
int32_t PatternParser::bracket() {
  size_t start = at++;
  bool negative = take("^"), first = true;
  CodePoints points;
  for (;; first = false) {
    if (done()) fail("a class is not closed: it begins", start);
    if (ahead("]") && !(first && options.python)) break;
    uint32_t from, to;
    bool is_class = class_atom(from, points);
    if (!ahead("-") || source.substr(at, 2) == "-]") {
      if (!is_class) points.emplace_back(from, from);
      continue;
    }
    size_t hyphen = at++;
    if (done()) fail("a class is not closed: it begins", start);
    bool to_class = class_atom(to, points);
    if (is_class || to_class) {
      points.emplace_back('-', '-');
      if (!is_class) points.emplace_back(from, from);
      if (!to_class) points.emplace_back(to, to);
      continue;
    }
    if (from > to) fail("a range is out of order", hyphen);
    points.emplace_back(from, to);
  }
  ++at;
  points = united(std::move(points));
  if (ignore_case) points = with_cases(points);
  if (negative) points = inverted(points);
  return add({.kind = Pattern::kSet, .consumes = true, .set = std::move(points)});
}

bool PatternParser::class_atom(uint32_t& c, CodePoints& points) {
  size_t start = at;
  if (!take("\\")) {
    c = uint32_t(next());
    return false;
  }
  if (done()) fail("a pattern ends in a backslash", start);
  CodePoints more;
  if (class_escape(more, start)) {
    points.insert(points.end(), more.begin(), more.end());
    return true;
  }
  if (take("b")) {
    c = '\b';
  } else {
    c = character_escape(start, true);
  }
  return false;
}

}  // namespace tokops::grammar
