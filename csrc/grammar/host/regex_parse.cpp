// From the text of a regular expression to its tree: ECMA-262 with flag u, and the sloppiness that
// real patterns take from its annex B where the meaning is plain: escaped punctuation, lone
// brackets and braces, hyphens beside a class, octal escapes.
#include <algorithm>

#include "regex_parser.h"

namespace tokops::grammar {
namespace {

constexpr int kMaxNesting = 250;

}  // namespace

int32_t PatternParser::choice() {
  if (++depth > kMaxNesting)
    throw BudgetError("nesting", pointer,
                      "a pattern has more than " + std::to_string(kMaxNesting) + " nested groups");
  bool case_before = ignore_case, all_before = dot_all;
  std::vector<int32_t> parts{sequence()};
  while (take("|")) parts.push_back(sequence());
  ignore_case = case_before, dot_all = all_before;  // flags end with their group
  --depth;
  return group(Pattern::kChoice, std::move(parts));
}

int32_t PatternParser::sequence() {
  std::vector<int32_t> parts;
  bool joinable = false;  // the last part is text that more text may join
  while (!done() && !ahead("|") && !ahead(")")) {
    size_t start = at;
    int32_t atom_ = atom();
    if (atom_ < 0) continue;  // flags
    int32_t repeated = quantified(atom_, start);
    bool text = repeated == atom_ && get(atom_).kind == Pattern::kText;
    if (text && joinable) {
      pattern.nodes[parts.back()].text += get(atom_).text;
      continue;
    }
    joinable = text;
    parts.push_back(repeated);
  }
  if (parts.empty()) return add({.kind = Pattern::kText});
  return group(Pattern::kSequence, std::move(parts));
}

bool PatternParser::number(int64_t& n) {
  size_t start = at;
  n = 0;
  while (!done() && source[at] >= '0' && source[at] <= '9')
    n = std::min<int64_t>(n * 10 + (source[at++] - '0'), 1LL << 40);
  return at > start;
}

// {n}, {n,} or {n,m}; anything else is left where it is.
bool PatternParser::braces(int64_t& lo, int64_t& hi) {
  size_t start = at;
  if (take("{") && (number(lo) || (options.python && ahead(",") && (lo = 0, true)))) {
    hi = lo;
    if (take(",") && !number(hi)) hi = -1;
    if (take("}")) return true;
  }
  at = start;
  return false;
}

int32_t PatternParser::quantified(int32_t atom_, size_t start) {
  int64_t lo, hi;
  size_t where = at;
  if (take("*")) {
    lo = 0, hi = -1;
  } else if (take("+")) {
    lo = 1, hi = -1;
  } else if (take("?")) {
    lo = 0, hi = 1;
  } else if (!braces(lo, hi)) {
    return atom_;
  }
  take("?");  // which of several matches is taken makes no difference to what matches
  if (ahead("+")) fail("a possessive quantifier is not supported: it stands", at);
  if (ahead("*") || ahead("?")) fail("a quantifier has nothing to repeat", at);
  int64_t a, b;
  size_t here = at;
  if (braces(a, b)) fail("a quantifier has nothing to repeat", here);
  if (hi >= 0 && lo > hi) fail("the bounds of a quantifier are out of order", where);
  if (lo > INT32_MAX)
    throw BudgetError("repeat", pointer, "a pattern repeats more than 2147483647 times");
  if (hi > INT32_MAX) hi = -1;
  const Node& body = get(atom_);
  bool pure = body.kind >= Pattern::kAhead;  // an assertion and nothing else
  std::string_view opened = source.substr(start, 4);
  if (pure && (opened[0] != '(' || opened == "(?<=" || opened == "(?<!"))
    fail("a quantifier has nothing to repeat", start);
  if (pure && lo > 0) return atom_;  // holding once or often is the same
  if (pure || hi == 0) return add({.kind = Pattern::kText});
  Node node{.kind = Pattern::kRepeat,
            .asserts = body.asserts,
            .contextual = body.contextual,
            .consumes = lo > 0 && body.consumes,
            .lo = int32_t(lo),
            .hi = int32_t(hi),
            .parts = {atom_}};
  return add(std::move(node));
}

int32_t PatternParser::atom() {
  size_t start = at;
  switch (source[at]) {
    case '^':
      ++at;
      return assertion(Pattern::kBegin);
    case '$':
      ++at;
      return assertion(options.python ? Pattern::kLastEnd : Pattern::kEnd);
    case '(':
      return parenthesis();
    case '[':
      return bracket();
    case '.':
      ++at;
      if (dot_all) return add({.kind = Pattern::kSet, .consumes = true, .set = {{0, 0x10ffff}}});
      return add({.kind = Pattern::kSet,
                  .consumes = true,
                  .set = inverted(options.python ? CodePoints{{'\n', '\n'}} : line_ends())});
    case '\\':
      ++at;
      return escape(start);
    case '*':
    case '+':
    case '?':
      fail("a quantifier has nothing to repeat", at);
    case '{': {
      int64_t lo, hi;
      if (braces(lo, hi)) fail("a quantifier has nothing to repeat", start);
      break;
    }
    default:
      break;
  }
  return character(uint32_t(next()));
}

int32_t PatternParser::parenthesis() {
  size_t start = at++;
  int32_t inner;
  if (!take("?")) {
    inner = choice();
  } else if (take(":")) {
    inner = choice();
  } else if (take("=") || take("!")) {
    bool negative = source[at - 1] == '!';
    inner = choice();
    Node node{.kind = Pattern::kAhead,
              .negative = negative,
              .asserts = true,
              .contextual = get(inner).contextual,
              .parts = {inner}};
    inner = add(std::move(node));
  } else if (take("<=") || take("<!")) {
    bool negative = source[at - 1] == '!';
    inner = behind(choice(), negative, start);
  } else if (take("P<") || take("<")) {
    while (!done() && source[at] != '>' && source[at] != ')') ++at;
    if (!take(">")) fail("the name of a group has no end: it begins", start);
    inner = choice();
  } else if (take(">")) {
    fail("an atomic group is not supported: it stands", start);
  } else if (take("#")) {
    fail("a comment group is not supported: it stands", start);
  } else if (ahead("P=") || ahead("P>") || ahead("&") || ahead("R") || ahead("(")) {
    fail("a reference to a group or a condition is not supported: it stands", start);
  } else {
    return flags(start);
  }
  if (!take(")")) fail("a group is not closed: it begins", start);
  return inner;
}

// (?i), (?i:..), (?-i:..): i and s are known, u says nothing new.
int32_t PatternParser::flags(size_t start) {
  bool on = true, case_ = ignore_case, all = dot_all;
  for (;; ++at) {
    if (done()) fail("a group is not closed: it begins", start);
    char c = source[at];
    if (c == '-') {
      on = false;
    } else if (c == 'i') {
      case_ = on;
    } else if (c == 's') {
      all = on;
    } else if (c == ':' || c == ')') {
      break;
    } else if (c != 'u') {
      fail(std::string("flag '") + c + "' of a group is not supported: it stands", at);
    }
  }
  bool whole = source[at++] == ')';
  if (whole) {
    if (start > 1 || (start == 1 && source[0] != '^'))
      fail("flags inside of a pattern are supported at its start only: they stand", start);
    ignore_case = case_, dot_all = all;
    return -1;
  }
  bool case_before = ignore_case, all_before = dot_all;
  ignore_case = case_, dot_all = all;
  int32_t inner = choice();
  ignore_case = case_before, dot_all = all_before;
  if (!take(")")) fail("a group is not closed: it begins", start);
  return inner;
}

// Look-behind is had for single characters: what stands before is known by its kind.
int32_t PatternParser::behind(int32_t inner, bool negative, size_t start) {
  Node node{.kind = Pattern::kBehind, .negative = negative, .asserts = true, .contextual = true};
  std::vector<int32_t> parts =
      get(inner).kind == Pattern::kChoice ? get(inner).parts : std::vector{inner};
  for (int32_t p : parts) {
    const Node& part = get(p);
    size_t i = 0;
    if (part.kind == Pattern::kSet) {
      node.set.insert(node.set.end(), part.set.begin(), part.set.end());
    } else if (part.kind == Pattern::kBegin) {
      node.begin = true;
    } else if (int32_t c; part.kind == Pattern::kText && (c = next_code_point(part.text, i)) >= 0 &&
                          i == part.text.size()) {
      node.set.emplace_back(c, c);
    } else {
      fail("a look-behind at more than one character is not supported: it stands", start);
    }
  }
  node.set = united(std::move(node.set));
  return add(std::move(node));
}

// Groups are counted beforehand: a back-reference may stand before its group.
void PatternParser::count_groups() {
  bool in_class = false;
  for (size_t i = 0; i < source.size(); ++i) {
    char c = source[i];
    if (c == '\\') {
      ++i;
    } else if (in_class) {
      in_class = c != ']';
    } else if (c == '[') {
      in_class = true;
    } else if (c == '(') {
      std::string_view rest = source.substr(i + 1, 3);
      bool named =
          rest.starts_with("?P<") || (rest.starts_with("?<") && rest[2] != '=' && rest[2] != '!');
      groups += named || !rest.starts_with("?");
      has_names |= named;
    }
  }
}

Pattern parse_pattern(std::string_view source, const RegexOptions& options,
                      const std::string& keyword, const std::string& pointer) {
  PatternParser parser{
      .source = source, .options = options, .keyword = keyword, .pointer = pointer};
  if (options.multi_line) throw GrammarError(keyword, pointer, "flag m is not supported");
  parser.count_groups();
  parser.pattern.root = parser.choice();
  if (!parser.done()) parser.fail("a parenthesis is closed that was not opened", parser.at);
  return std::move(parser.pattern);
}

}  // namespace tokops::grammar
