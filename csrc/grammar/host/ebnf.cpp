// EBNF as it is written for language models (llama.cpp's GBNF, xgrammar's), ISO 14977 and W3C
// style.
#include <cctype>

#include "rules.h"
#include "syntax.h"

namespace tokops::grammar {
namespace {

using namespace front;

bool starts_name(char c) { return std::isalpha(uint8_t(c)) || c == '_'; }
bool in_name(char c) { return std::isalnum(uint8_t(c)) || c == '_' || c == '-'; }

class EbnfParser {
 public:
  EbnfParser(Langs& langs, std::string_view text) : langs_(langs), source_(text) {}

  Rules parse(const std::string& start);

 private:
  // '=' defines: [x] is an option, commas separate, '.' ends a rule. Else [..] is a class of
  // characters and '.' stands for any.
  bool iso_ = false;
  bool bnf_ = false;  // names stand in <>
  Langs& langs_;
  Source source_;
  Syntax syntax_;
  int depth_ = 0;
  int32_t any_char_ = -1;

  void skip();
  bool at_code() const {  // W3C's #x41
    return !iso_ && source_.starts("#x") && std::isxdigit(uint8_t(source_.peek(2)));
  }
  bool at_define() const;
  bool at_name() const { return bnf_ ? source_.peek() == '<' : starts_name(source_.peek()); }
  std::string read_name();
  bool at_definition();
  bool at_end_of_rule();
  void definition();
  int32_t expression();
  int32_t sequence();
  int32_t term();
  int32_t atom();
  int32_t special(size_t at);
  int32_t bracketed(char close);
  int32_t regex_atom();
  void refuse_calls(const std::string& name, size_t at);
};

void EbnfParser::skip() {
  while (!source_.end()) {
    const char c = source_.peek();
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f') {
      ++source_.at;
    } else if ((c == '#' && !at_code()) || source_.starts("//")) {
      source_.skip_line();
    } else if (source_.starts("(*")) {
      source_.skip_block("(*", "*)", true);
    } else if (source_.starts("/*")) {
      source_.skip_block("/*", "*/", false);
    } else {
      return;
    }
  }
}

bool EbnfParser::at_define() const {
  if (source_.starts("::=") || source_.starts(":=")) return true;
  return source_.peek() == '=' && source_.peek(1) != '=';
}

std::string EbnfParser::read_name() {
  const size_t from = source_.at;
  if (bnf_) {
    while (!source_.end() && source_.peek() != '>' && source_.peek() != '\n') ++source_.at;
    if (!source_.take(">")) source_.fail(from, "syntax", "the name is not closed with '>'");
    return std::string(source_.slice(from, source_.at));
  }
  if (!starts_name(source_.peek())) source_.fail("expected a name, found " + source_.shown());
  // "a-b" is a name; "a - b" is an exception.
  while (in_name(source_.peek())) ++source_.at;
  return std::string(source_.slice(from, source_.at));
}

bool EbnfParser::at_definition() {
  if (!at_name()) return false;
  const size_t from = source_.at;
  bool found = false;
  if (bnf_) {
    while (!source_.end() && source_.peek() != '>' && source_.peek() != '\n') ++source_.at;
    found = source_.take(">");
  } else {
    while (in_name(source_.peek())) ++source_.at;
    found = true;
  }
  if (found) skip();
  found = found && (iso_ ? source_.peek() == '=' : source_.starts("::=") || source_.starts(":="));
  source_.at = from;
  return found;
}

bool EbnfParser::at_end_of_rule() {
  return source_.end() || source_.peek() == ';' || (iso_ && source_.peek() == '.') ||
         (depth_ == 0 && at_definition());
}

void EbnfParser::definition() {
  const size_t at = source_.at;
  const std::string name = read_name();
  skip();
  if (!at_define()) source_.fail("expected '::=' behind " + name + ", found " + source_.shown());
  const bool iso = source_.peek() == '=';
  if (iso != iso_) source_.fail("rules are defined with '=' and with '::=' in one grammar");
  if (!source_.take("::=") && !source_.take(":=")) source_.take("=");
  skip();
  const int32_t id = syntax_.name(name);
  if (syntax_.definitions[size_t(id)].body >= 0)
    source_.fail(at, "name", name + " is defined twice");
  const int32_t body = expression();
  syntax_.definitions[size_t(id)] = {body, uint32_t(at), false, {}};
  skip();
  if (!at_end_of_rule()) source_.fail("unexpected " + source_.shown());
  while (source_.take(";") || (iso_ && source_.take("."))) skip();
}

int32_t EbnfParser::expression() {
  const size_t at = source_.at;
  std::vector<int32_t> ways;
  do {
    skip();
    ways.push_back(sequence());
  } while (source_.take("|"));
  return syntax_.join(Part::kEither, std::move(ways), at);
}

int32_t EbnfParser::sequence() {
  const size_t at = source_.at;
  std::vector<int32_t> items;
  while (true) {
    skip();
    const char c = source_.peek();
    if (c == '|' || c == ')' || c == ']' || c == '}' || at_end_of_rule()) break;
    if (iso_ && c == ',') {
      if (items.empty()) source_.fail("unexpected ','");
      ++source_.at;
      skip();
    }
    int32_t item = term();
    skip();
    for (int chain = 0; source_.peek() == '-'; source_.check_depth(++chain)) {
      ++source_.at;
      skip();
      const int32_t without = term();
      item = syntax_.add({Part::kMinus, uint32_t(at), 0, 0, 0, {item, without}});
      skip();
    }
    items.push_back(item);
  }
  return syntax_.join(Part::kConcat, std::move(items), at);
}

int32_t EbnfParser::term() {
  const size_t at = source_.at;
  if (std::isdigit(uint8_t(source_.peek()))) {  // ISO's "3 * x"
    const int32_t times = source_.number();
    skip();
    if (!source_.take("*")) {
      source_.fail(
          at, "syntax",
          iso_ ? "a number without '*'; where '=' defines, [ ] is an option: use '::=' for classes"
               : "a number without '*'");
    }
    skip();
    Nested nested(source_, depth_);
    return syntax_.repeat(term(), times, times, at);
  }
  int32_t part = atom();
  for (int chain = 0;; source_.check_depth(++chain)) {
    const size_t before = source_.at;
    skip();
    if (source_.at_count()) {
      const auto [least, most] = source_.count();
      part = syntax_.repeat(part, least, most, at);
    } else if (source_.take("*")) {
      part = syntax_.repeat(part, 0, -1, at);
    } else if (source_.take("+")) {
      part = syntax_.repeat(part, 1, -1, at);
    } else if ((!iso_ || source_.at == before) &&
               source_.take("?")) {  // ISO: "? .. ?" is no option
      part = syntax_.repeat(part, 0, 1, at);
    } else {
      source_.at = before;
      return part;
    }
  }
}

int32_t EbnfParser::bracketed(char close) {
  const size_t open = source_.at++;
  Nested nested(source_, depth_);
  skip();
  const int32_t inner = expression();
  skip();
  if (source_.peek() != close) {
    if (source_.end()) source_.fail(open, "syntax", "the bracket is not closed");
    source_.fail(std::string("expected '") + close + "', found " + source_.shown());
  }
  ++source_.at;
  return inner;
}

int32_t EbnfParser::regex_atom() {
  const size_t at = source_.at;
  const std::string pattern = source_.regex_body();
  RegexOptions options;
  options.search = false;
  while (std::isalpha(uint8_t(source_.peek()))) {
    const char flag = source_.peek();
    if (flag == 'i') {
      options.ignore_case = true;
    } else if (flag == 's') {
      options.dot_all = true;
    } else if (flag != 'u') {
      source_.fail(source_.at, "regex flags",
                   std::string("the flag ") + flag + " is not supported");
    }
    ++source_.at;
  }
  return syntax_.lang(read_regex(langs_, source_, at, pattern, options), at, pattern.size());
}

int32_t EbnfParser::special(size_t at) {
  if (source_.peek() == '<' || source_.starts("!<")) {
    source_.fail(at, "special token",
                 "<..> would name a token, and grammars are over text; BNF names have to be "
                 "defined as <name> ::= ..");
  }
  if (source_.peek() == '?')
    source_.fail(at, "special sequence", "? .. ? has no meaning that is known here");
  source_.fail(at, "syntax", "unexpected " + source_.shown());
}

void EbnfParser::refuse_calls(const std::string& name, size_t at) {
  if (source_.peek() != '(') return;
  for (const char* call : {"TagDispatch", "TokenTagDispatch", "Token", "ExcludeToken"}) {
    if (name == call)
      source_.fail(at, call, "is not supported in EBNF: compile_tags has free text with tags");
  }
}

int32_t EbnfParser::atom() {
  const size_t at = source_.at;
  const char c = source_.peek();
  if (c == '"' || c == '\'') {
    return syntax_.word(source_.literal(iso_ ? Escapes::kIso : Escapes::kAll), at);
  }
  if (at_name()) {
    const std::string name = read_name();
    refuse_calls(name, at);
    return syntax_.add({Part::kName, uint32_t(at), syntax_.name(name), 0, 0, {}});
  }
  if (c == '(') {
    size_t ahead = 1;
    while (source_.peek(ahead) == ' ') ++ahead;
    if (source_.peek(ahead) == '=') source_.fail(at, "lookahead", "(= ..) is not supported");
    return bracketed(')');
  }
  if (c == '{') return syntax_.repeat(bracketed('}'), 0, -1, at);
  if (c == '[' && iso_) return syntax_.repeat(bracketed(']'), 0, 1, at);
  if (c == '[') return syntax_.lang(langs_.code_points(source_.char_class()), at);
  if (c == '/') return regex_atom();
  if (c == '.' && !iso_) {
    ++source_.at;
    if (any_char_ < 0) any_char_ = syntax_.lang(langs_.any_char(), at);
    return any_char_;
  }
  if (at_code()) {
    source_.at += 2;
    uint32_t code = 0;
    for (; std::isxdigit(uint8_t(source_.peek())) && code <= 0x10ffff; ++source_.at) {
      code = code << 4 | uint32_t(std::stoi(std::string(1, source_.peek()), nullptr, 16));
    }
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
      source_.fail(at, "escape", "the number is not that of a character");
    }
    std::string word;
    append_utf8(word, code);
    return syntax_.word(std::move(word), at);
  }
  return special(at);
}

Rules EbnfParser::parse(const std::string& start) {
  skip();
  if (source_.end()) source_.fail("the grammar holds no rule");
  bnf_ = source_.peek() == '<';
  const size_t from = source_.at;
  const std::string first = read_name();
  skip();
  if (!at_define()) source_.fail("expected '::=' behind " + first + ", found " + source_.shown());
  iso_ = source_.peek() == '=';
  source_.at = from;
  while (!source_.end()) {
    definition();
    skip();
  }
  std::string chosen = start;
  if (chosen.empty()) {
    const auto defined = [&](const char* name) { return syntax_.index.count(name) > 0; };
    chosen = defined("root") ? "root" : defined("start") ? "start" : first;
  }
  if (!syntax_.index.count(chosen) && syntax_.index.count("<" + chosen + ">"))
    chosen = "<" + chosen + ">";
  const auto it = syntax_.index.find(chosen);
  if (it == syntax_.index.end() || syntax_.definitions[size_t(it->second)].body < 0) {
    source_.fail(0, "start", "there is no rule " + chosen);
  }
  return lower(langs_, syntax_, it->second, -1, source_);
}

}  // namespace

// One reader for all dialects. What defines a rule tells them apart: '::=' or ':=' (GBNF, xgrammar,
// W3C, BNF), where [..] is a class of characters and '.' any character, or '=' (ISO 14977), where
// [..] is an option, ',' may stand between items and '.' or ';' end a rule. In all: | ( ) { } as
// repetition, * + ? {m} {m,} {m,n} behind an item, "n * x", "a - b" for regular a and b, literals
// in either quotes, /regex/ with flags i and s, comments # // (* *) /* */. A rule ends where the
// next begins, so line breaks mean nothing. In ISO's dialect a literal that is one backslash is
// that backslash, and everywhere else a backslash begins an escape.
Rules parse_ebnf(Langs& langs, std::string_view source, const std::string& start) {
  return EbnfParser(langs, source).parse(start);
}

}  // namespace tokops::grammar
