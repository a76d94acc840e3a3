// The reader of regular expressions: what its two files share.
#pragma once
#include "regex_tree.h"

namespace tokops::grammar {

struct PatternParser {
  using Node = Pattern::Node;

  std::string_view source;
  RegexOptions options;
  const std::string &keyword, &pointer;
  bool ignore_case = options.ignore_case, dot_all = options.dot_all;
  Pattern pattern = {};
  size_t at = 0;
  int depth = 0, groups = 0;
  bool has_names = false;

  [[noreturn]] void fail(const std::string& what, size_t where) const {
    GrammarError error(
        keyword, pointer,
        what + " at offset " + std::to_string(where) + " of '" + std::string(source) + "'");
    error.offset = int64_t(where);
    throw error;
  }
  bool done() const { return at >= source.size(); }
  bool ahead(std::string_view text) const { return source.substr(at, text.size()) == text; }
  bool take(std::string_view text) {
    if (!ahead(text)) return false;
    at += text.size();
    return true;
  }
  int32_t next() {
    size_t before = at;
    int32_t c = next_code_point(source, at);
    if (c < 0) fail("bytes that are not UTF-8", before);
    return c;
  }

  // ---- Nodes

  int32_t add(Node node) {
    pattern.nodes.push_back(std::move(node));
    return int32_t(pattern.nodes.size()) - 1;
  }
  const Node& get(int32_t i) const { return pattern.nodes[i]; }

  int32_t set(CodePoints points) {
    if (ignore_case) points = with_cases(points);
    return add({.kind = Pattern::kSet, .consumes = true, .set = std::move(points)});
  }
  int32_t character(uint32_t c) {
    if (c >= 0xd800 && c <= 0xdfff)
      return add({.kind = Pattern::kSet, .consumes = true});  // not in text
    if (ignore_case) {
      CodePoints both = with_cases({{c, c}});
      if (both.size() > 1 || both[0].first != both[0].second) return set(std::move(both));
    }
    Node node{.kind = Pattern::kText, .consumes = true};
    append_utf8(node.text, c);
    return add(std::move(node));
  }
  int32_t group(Pattern::Kind kind, std::vector<int32_t> parts) {
    if (parts.size() == 1) return parts[0];
    Node node{.kind = kind};
    node.consumes = kind == Pattern::kChoice;
    for (int32_t p : parts) {
      node.asserts |= get(p).asserts;
      node.contextual |= get(p).contextual;
      node.consumes = kind == Pattern::kChoice ? node.consumes && get(p).consumes
                                               : node.consumes || get(p).consumes;
    }
    node.parts = std::move(parts);
    return add(std::move(node));
  }
  int32_t assertion(Pattern::Kind kind, bool negative = false) {
    bool back = kind == Pattern::kBegin || kind == Pattern::kBoundary;
    return add({.kind = kind, .negative = negative, .asserts = true, .contextual = back});
  }

  // ---- Grammar: regex_parse.cpp. Each gives the index of a node.

  int32_t choice();
  int32_t sequence();
  bool number(int64_t& n);
  bool braces(int64_t& lo, int64_t& hi);
  int32_t quantified(int32_t atom_, size_t start);
  int32_t atom();
  int32_t parenthesis();
  int32_t flags(size_t start);
  int32_t behind(int32_t inner, bool negative, size_t start);
  void count_groups();

  // ---- Escapes and classes: regex_escapes.cpp. `at` is behind the backslash.

  bool hex(int count, uint32_t& value);
  uint32_t unicode_escape(size_t start);
  bool class_escape(CodePoints& points, size_t start);
  uint32_t character_escape(size_t start, bool in_class);
  int32_t escape(size_t start);
  int32_t bracket();
  bool class_atom(uint32_t& c, CodePoints& points);
};

}  // namespace tokops::grammar
