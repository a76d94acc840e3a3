// Expressions of Lark grammars.
#include <cstdio>

#include "lark.h"

namespace tokops::grammar::front {

int32_t LarkParser::expansions() {
  const size_t at = source_.at;
  std::vector<int32_t> ways = {alternative()};
  while (skip_to_bar()) {
    ++source_.at;
    skip(depth_ > 0);
    ways.push_back(alternative());
  }
  return syntax_.join(Part::kEither, std::move(ways), at);
}

// One expansion with its alias; '&' stands between languages that have to hold both.
int32_t LarkParser::alternative() {
  const size_t at = source_.at;
  std::vector<int32_t> both = {sequence()};
  while (source_.take("&")) {
    skip(depth_ > 0);
    both.push_back(sequence());
  }
  if (source_.take("->")) {
    skip(depth_ > 0);
    read_name();
    skip(depth_ > 0);
  }
  return syntax_.join(Part::kBoth, std::move(both), at);
}

bool LarkParser::at_end() const {
  const char c = source_.peek();
  return source_.end() || c == '\n' || c == '|' || c == ')' || c == ']' || c == '}' || c == '&' ||
         c == ',' || source_.starts("->");
}

int32_t LarkParser::sequence() {
  const size_t at = source_.at;
  std::vector<int32_t> items;
  while (true) {
    skip(depth_ > 0);
    if (at_end()) break;
    items.push_back(item());
  }
  return syntax_.join(Part::kConcat, std::move(items), at);
}

int32_t LarkParser::item() {
  const size_t at = source_.at;
  int32_t part = atom();
  for (int chain = 0;; source_.check_depth(++chain)) {
    const size_t before = source_.at;
    skip(depth_ > 0);
    if (source_.at_count()) {
      const auto [least, most] = source_.count();
      part = syntax_.repeat(part, least, most, at);
    } else if (source_.take("*")) {
      part = syntax_.repeat(part, 0, -1, at);
    } else if (source_.take("+")) {
      part = syntax_.repeat(part, 1, -1, at);
    } else if (source_.take("?")) {
      part = syntax_.repeat(part, 0, 1, at);
    } else if (source_.peek() == '~') {
      ++source_.at;
      skip(depth_ > 0);
      if (!std::isdigit(uint8_t(source_.peek()))) {  // the next item is a complement
        source_.at = before;
        return part;
      }
      const int32_t least = source_.number();
      int32_t most = least;
      const size_t behind = source_.at;
      skip(depth_ > 0);
      if (source_.take("..")) {
        skip(depth_ > 0);
        most = source_.number();
      } else {
        source_.at = behind;
      }
      if (most < least) source_.fail(before, "repetition", "the count runs backwards");
      part = syntax_.repeat(part, least, most, at);
    } else {
      source_.at = before;
      return part;
    }
  }
}

int32_t LarkParser::group(char close) {
  const size_t open = source_.at++;
  Nested nested(source_, depth_);
  const int32_t inner = expansions();
  skip(true);
  if (source_.peek() != close) {
    if (source_.end()) source_.fail(open, "syntax", "the bracket is not closed");
    source_.fail(std::string("expected '") + close + "', found " + source_.shown());
  }
  ++source_.at;
  return inner;
}

int32_t LarkParser::ignoring_case(const std::string& word, size_t at) {
  std::string pattern;
  Source text(word);
  while (!text.end()) {
    char code[16];
    std::snprintf(code, sizeof code, "\\u{%x}", unsigned(text.code_point()));
    pattern += code;
  }
  RegexOptions options;
  options.search = false;
  options.ignore_case = true;
  return syntax_.lang(read_regex(langs_, source_, at, pattern, options, "literal"), at,
                      word.size() + 1);
}

int32_t LarkParser::string_atom() {
  const size_t at = source_.at;
  std::string word = source_.literal(Escapes::kAll);
  if (source_.slice(at, source_.at).find('\n') != std::string_view::npos) {
    source_.fail(at, "syntax", "the literal is not closed in its line");
  }
  if (source_.peek() == 'i' && !in_name(source_.peek(1))) {
    ++source_.at;
    return ignoring_case(word, at);
  }
  const size_t before = source_.at;
  skip(depth_ > 0);
  if (!source_.take("..")) {
    source_.at = before;
    return syntax_.word(std::move(word), at);
  }
  skip(depth_ > 0);
  if (source_.peek() != '"')
    source_.fail("expected the last character of a range, found " + source_.shown());
  const std::string end = source_.literal(Escapes::kAll);
  const auto only = [&](const std::string& text) {
    Source s(text);
    const uint32_t c = s.end() ? 0 : s.code_point();
    if (text.empty() || !s.end())
      source_.fail(at, "range", "a range is between two single characters");
    return c;
  };
  const uint32_t first = only(word), last = only(end);
  if (last < first) source_.fail(at, "range", "the range runs backwards");
  CodePoints ranges = complement(complement({{first, last}}));
  if (ranges.empty()) source_.fail(at, "range", "the range holds no character");
  return syntax_.lang(langs_.code_points(ranges), at);
}

int32_t LarkParser::regex_atom() {
  const size_t at = source_.at;
  const std::string pattern = source_.regex_body();
  RegexOptions options;
  options.search = false;
  options.python = true;
  while (std::isalpha(uint8_t(source_.peek()))) {
    const char flag = source_.peek();
    const bool anchors = pattern.find_first_of("^$") != std::string::npos;
    if (flag == 'i') {
      options.ignore_case = true;
    } else if (flag == 's') {
      options.dot_all = true;
    } else if (flag != 'u' && (flag != 'm' || anchors)) {
      source_.fail(source_.at, "regex flags",
                   std::string("the flag ") + flag + " is not supported");
    }
    ++source_.at;
  }
  return syntax_.lang(read_regex(langs_, source_, at, pattern, options), at, pattern.size());
}

int32_t LarkParser::name_atom() {
  const size_t at = source_.at;
  const int32_t id = syntax_.name(read_name());
  if (source_.peek() != '{' || source_.at_count())
    return syntax_.add({Part::kName, uint32_t(at), id, 0, 0, {}});
  ++source_.at;
  Nested nested(source_, depth_);
  std::vector<int32_t> arguments;
  do {
    arguments.push_back(expansions());
    skip(true);
  } while (source_.take(","));
  if (!source_.take("}")) source_.fail("expected '}', found " + source_.shown());
  return syntax_.add({Part::kCall, uint32_t(at), id, 0, 0, std::move(arguments)});
}

int32_t LarkParser::embedded(size_t at) {
  ++source_.at;
  const std::string name = read_name();
  skip(true);
  if (name != "json" || source_.peek() != '{') {
    source_.fail(at, "%" + name,
                 name == "json" ? "expected a JSON object" : "is not supported inside a rule");
  }
  syntax_.schemas.push_back(source_.json_object());
  return syntax_.add({Part::kSchema, uint32_t(at), int32_t(syntax_.schemas.size()) - 1, 0, 0, {}});
}

int32_t LarkParser::atom() {
  const size_t at = source_.at;
  const char c = source_.peek();
  if (c == '(') return group(')');
  if (c == '[') return syntax_.repeat(group(']'), 0, 1, at);
  if (c == '"') return string_atom();
  if (c == '/') return regex_atom();
  if (c == '%') return embedded(at);
  if (c == '~') {
    ++source_.at;
    Nested nested(source_, depth_);
    skip(false);
    return syntax_.add({Part::kNot, uint32_t(at), 0, 0, 0, {atom()}});
  }
  if (c == '<') source_.fail(at, "special token", "<..> names a token, and grammars are over text");
  if (c == '@')
    source_.fail(at, "subgrammar", "@name refers to another grammar, and there is one only");
  if (!std::isalpha(uint8_t(c)) && c != '_') source_.fail("unexpected " + source_.shown());
  return name_atom();
}

}  // namespace tokops::grammar::front
