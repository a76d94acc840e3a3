// The reader of Lark grammars: statements in lark.cpp, expressions in lark_expression.cpp.
#pragma once
#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "rules.h"
#include "syntax.h"

namespace tokops::grammar::front {

class LarkParser {
 public:
  LarkParser(Langs& langs, std::string_view text) : langs_(langs), source_(text) {}

  Rules parse(const std::string& start);

 private:
  static bool in_name(char c) { return std::isalnum(uint8_t(c)) || c == '_'; }

  // What stands in [ ] behind a rule's name.
  struct Attributes {
    bool lazy = false;
    int32_t suffix = -1;
  };

  void skip(bool lines);
  bool skip_to_bar();
  void end_statement();
  std::string read_name();
  bool take_name(const char* word);

  void statement();
  void directive();
  void import(size_t at);
  void options(size_t at);
  void definition(bool extend, bool replace);
  std::vector<int32_t> parameters();
  Attributes attributes();
  void priority();
  void warn(const std::string& text);

  int32_t expansions();
  int32_t alternative();
  int32_t sequence();
  int32_t item();
  int32_t atom();
  int32_t group(char close);
  int32_t string_atom();
  int32_t regex_atom();
  int32_t name_atom();
  int32_t embedded(size_t at);
  int32_t ignoring_case(const std::string& word, size_t at);
  bool at_end() const;

  Langs& langs_;
  Source source_;
  Syntax syntax_;
  std::vector<int32_t> ignored_;
  std::vector<std::string> warnings_;
  int depth_ = 0;
};

}  // namespace tokops::grammar::front
