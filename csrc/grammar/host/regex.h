// Regular expressions, formats and numbers as languages.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lang.h"

namespace tokops::grammar {

struct RegexOptions {
  bool search = true;        // ECMA-262's test(): anchored only where the pattern says so
  bool ignore_case = false;  // flag i
  bool dot_all = false;      // flag s: . also stands for line terminators
  bool multi_line = false;   // refused by name
  bool python = false;       // Python's dialect where it differs ((?P<name>..), \A, \Z), for Lark
};

// The strings (UTF-8) that an ECMA-262 pattern with flag u matches. Throws GrammarError with
// keyword = `keyword`, naming the feature that is not supported (back-references, look-behind,
// look-around in places where it can't be had by intersection) or the position and reason of a
// syntax error.
Lang regex(Langs&, std::string_view pattern, const RegexOptions& = {},
           const std::string& keyword = "pattern", const std::string& pointer = "");

// The strings of a format of JSON Schema (date-time, time, date, duration, email, idn-email,
// hostname, idn-hostname, ipv4, ipv6, uuid, uri, uri-reference, iri, iri-reference, uri-template,
// json-pointer, relative-json-pointer, regex), or nothing for a name that is not known.
std::optional<Lang> format(Langs&, std::string_view name);
std::vector<std::string> format_names();

// A decimal number of any size, exactly: (-1)^negative * digits * 10^exponent, digits without
// leading or trailing zeros ("" is zero).
struct Decimal {
  bool negative = false;
  std::string digits;
  int64_t exponent = 0;
  static Decimal parse(
      std::string_view json_number);  // any JSON number text; throws std::invalid_argument
  bool integer() const { return digits.empty() || exponent >= 0; }
  int compare(const Decimal&) const;       // -1, 0, 1
  bool multiple_of(const Decimal&) const;  // exactly
  std::string text() const;                // canonical: equal numbers give equal text
};

// Sets of texts of JSON numbers. "Plain" texts have no exponent: -?(0|[1-9][0-9]*)(\.[0-9]+)?
// All but the last are sets of plain texts, closed under the number's other plain spellings
// (1, 1.0, 1.00; 0, -0), so that both/either/minus(plain(), ..) of them mean what they mean for
// numbers.
Lang plain_numbers(Langs&);
Lang plain_integers(Langs&);  // value is an integer: 1, -0, 1.0, 1.00
Lang at_least(Langs&, const Decimal&, bool exclusive);
Lang at_most(Langs&, const Decimal&, bool exclusive);
Lang multiple_of(Langs&, const Decimal&,
                 const std::string& pointer = "");  // BudgetError where residues are too many
Lang equal_to(Langs&, const Decimal&);
// Numbers with an exponent part ([eE][+-]?[0-9]{1,3}): only those whose value is >= 0 / <= 0 / != 0
// as asked.
enum class Sign { kAny, kNonNegative, kNonPositive, kPositive, kNegative };
Lang exponent_numbers(Langs&, Sign);

}  // namespace tokops::grammar
