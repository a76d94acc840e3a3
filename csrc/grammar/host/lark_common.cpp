// The terminals that Lark grammars import from "common".
#include "lark_common.h"

#include <array>
#include <utility>

namespace tokops::grammar::front {
namespace {

#define INT_ "[0-9]+"
#define EXPONENT_ "[eE][+\\-]?[0-9]+"
#define DECIMAL_ "(?:[0-9]+\\.[0-9]*|\\.[0-9]+)"
#define FLOAT_ "(?:[0-9]+" EXPONENT_ "|" DECIMAL_ "(?:" EXPONENT_ ")?)"
#define NUMBER_ "(?:" FLOAT_ "|" INT_ ")"

constexpr std::array<std::pair<std::string_view, std::string_view>, 25> kCommon = {{
    {"DIGIT", "[0-9]"},
    {"HEXDIGIT", "[a-fA-F0-9]"},
    {"INT", INT_},
    {"SIGNED_INT", "[+\\-]?" INT_},
    {"DECIMAL", DECIMAL_},
    {"_EXP", EXPONENT_},
    {"FLOAT", FLOAT_},
    {"SIGNED_FLOAT", "[+\\-]?" FLOAT_},
    {"NUMBER", NUMBER_},
    {"SIGNED_NUMBER", "[+\\-]?" NUMBER_},
    {"ESCAPED_STRING", "\"(?:[^\"\\\\\\n]|\\\\[^\\n])*\""},
    {"LCASE_LETTER", "[a-z]"},
    {"UCASE_LETTER", "[A-Z]"},
    {"LETTER", "[A-Za-z]"},
    {"WORD", "[A-Za-z]+"},
    {"CNAME", "[_A-Za-z][_A-Za-z0-9]*"},
    {"WS_INLINE", "[ \\t]+"},
    {"WS", "[ \\t\\f\\r\\n]+"},
    {"CR", "\\r"},
    {"LF", "\\n"},
    {"NEWLINE", "(?:\\r?\\n)+"},
    {"SH_COMMENT", "#[^\\n]*"},
    {"CPP_COMMENT", "//[^\\n]*"},
    {"C_COMMENT", "/\\*(?:[^*]|\\*+[^*/])*\\*+/"},
    {"SQL_COMMENT", "--[^\\n]*"},
}};

}  // namespace

std::string_view common_terminal(std::string_view name) {
  for (const auto& [known, pattern] : kCommon) {
    if (known == name) return pattern;
  }
  return {};
}

}  // namespace tokops::grammar::front
