// Context-free grammars whose terminals are regular languages or JSON schemas: what the front ends
// for EBNF, GBNF, Lark and tags produce, and the matcher runs.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "lang.h"

namespace tokops::grammar {

struct Symbol {
  enum Kind : int32_t { kLang, kRule, kSchema } kind;
  int32_t id;  // Lang, index of a rule, index into Rules::schemas
};

struct Rule {
  std::string name;
  std::vector<std::vector<Symbol>> alternatives;  // an empty one derives ""
};

struct Rules {
  std::vector<Rule> rules;
  int32_t start = 0;
  std::vector<std::string> schemas;  // JSON texts of schemas
  std::vector<std::string> places;   // of schemas: a pointer or "line:column", for messages
  std::vector<std::string> warnings;
  std::unordered_map<Lang, int32_t> weights;  // about how many literals a language is made of
};

// Front ends. Throw GrammarError with pointer "line:column". Whitespace between symbols is part of
// the grammar only where the grammar says so (Lark's %ignore does).
Rules parse_ebnf(Langs&, std::string_view source,
                 const std::string& start);  // EBNF and llama.cpp's GBNF
Rules parse_lark(Langs&, std::string_view source, const std::string& start);
Rules regex_rules(Langs&, std::string_view pattern);  // the whole text must match

// Free text until a trigger, then what belongs to the trigger, any number of times.
struct Tag {
  std::string begin, schema, end;  // schema: JSON text of a schema, or a pattern where is_regex
  bool is_regex = false;
};
struct TagOptions {
  std::vector<std::string> triggers;  // text is free until one of these; empty: the tags' begins
  bool at_least_one = false, stop_after_first = false;
};
Rules tag_rules(Langs&, const std::vector<Tag>&, const TagOptions&);

// Drops what derives nothing or can't be reached, folds rules that are regular into languages, and
// joins neighbouring languages. Throws GrammarError where the start derives nothing.
void simplify(Langs&, Rules&);

}  // namespace tokops::grammar
