// Decimal numbers of any size.
#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "regex.h"

namespace tokops::grammar {
namespace {

constexpr int64_t kMaxExponent = int64_t(1) << 40;

bool digit(char c) { return c >= '0' && c <= '9'; }

// Leading and trailing zeros off.
void trim(Decimal& x) {
  size_t first = x.digits.find_first_not_of('0');
  if (first == std::string::npos) {
    x = {};
    return;
  }
  x.digits.erase(0, first);
  size_t last = x.digits.find_last_not_of('0');
  x.exponent += int64_t(x.digits.size() - 1 - last);
  x.digits.resize(last + 1);
}

}  // namespace

Decimal Decimal::parse(std::string_view text) {
  auto fail = [&] {
    return std::invalid_argument("'" + std::string(text.substr(0, 60)) + "' is not a JSON number");
  };
  Decimal x;
  size_t i = 0;
  auto digits_ = [&](std::string& out) {
    size_t start = i;
    while (i < text.size() && digit(text[i])) out += text[i++];
    if (i == start) throw fail();
  };
  if (i < text.size() && text[i] == '-') x.negative = true, ++i;
  size_t start = i;
  digits_(x.digits);
  if (text[start] == '0' && i - start > 1) throw fail();
  if (i < text.size() && text[i] == '.') {
    size_t dot = i++;
    digits_(x.digits);
    x.exponent = -int64_t(i - dot - 1);
  }
  if (i < text.size() && (text[i] | 32) == 'e') {
    ++i;
    bool minus = i < text.size() && text[i] == '-';
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    std::string exponent;
    digits_(exponent);
    int64_t e = 0;
    for (char c : exponent) e = std::min(kMaxExponent, e * 10 + (c - '0'));
    x.exponent += minus ? -e : e;
  }
  if (i != text.size()) throw fail();
  trim(x);
  return x;
}

int Decimal::compare(const Decimal& o) const {
  if (digits.empty() || o.digits.empty() || negative != o.negative) {
    int own = digits.empty() ? 0
              : negative     ? -1
                             : 1,
        other = o.digits.empty() ? 0
                : o.negative     ? -1
                                 : 1;
    return own < other ? -1 : own > other;
  }
  int64_t top = int64_t(digits.size()) + exponent, other = int64_t(o.digits.size()) + o.exponent;
  int larger = top != other ? (top < other ? -1 : 1) : digits.compare(o.digits);
  larger = larger < 0 ? -1 : larger > 0;
  return negative ? -larger : larger;
}

// this = a 10^e and o = b 10^f, and a and b don't end in 0. What is left of b after its factors 2
// and 5 are paid for by powers of ten must divide a; so a 10^(e - f) is divided by b as a long
// number.
bool Decimal::multiple_of(const Decimal& o) const {
  if (digits.empty()) return true;
  if (o.digits.empty()) return false;
  int64_t shift = exponent - o.exponent;
  if (shift < 0) return false;  // a does not end in 0, so a 10^shift is no integer
  // The remainder of a 10^shift by b: digit by digit, with b as a string of any length.
  auto less = [](const std::string& x, const std::string& y) {
    return x.size() != y.size() ? x.size() < y.size() : x < y;
  };
  auto subtract = [](std::string& x, const std::string& y) {  // x >= y
    int borrow = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      char& c = x[x.size() - 1 - i];
      int d = c - '0' - borrow - (i < y.size() ? y[y.size() - 1 - i] - '0' : 0);
      borrow = d < 0;
      c = char('0' + (d + (borrow ? 10 : 0)));
    }
    x.erase(0, std::min(x.find_first_not_of('0'), x.size()));
  };
  std::string rest;
  auto bring = [&](char c) {
    if (!rest.empty() || c != '0') rest += c;
    while (!less(rest, o.digits)) subtract(rest, o.digits);
  };
  for (char c : digits) bring(c);
  // Each factor 10 pays for a factor 2 and a factor 5 of b at most: after as many zeros as b has
  // bits more change nothing.
  int64_t enough = 4 * int64_t(o.digits.size()) + 4;
  for (int64_t i = 0; i < std::min(shift, enough) && !rest.empty(); ++i) bring('0');
  return rest.empty();
}

std::string Decimal::text() const {
  if (digits.empty()) return "0";
  std::string out = negative ? "-" : "";
  int64_t point = int64_t(digits.size()) + exponent;  // digits before the point
  if (exponent >= 0 && exponent <= 400) return out + digits + std::string(size_t(exponent), '0');
  if (exponent < 0 && point > 0)
    return out + digits.substr(0, size_t(point)) + "." + digits.substr(size_t(point));
  if (exponent < 0 && point > -400) return out + "0." + std::string(size_t(-point), '0') + digits;
  return out + digits + "e" + std::to_string(exponent);
}

}  // namespace tokops::grammar
