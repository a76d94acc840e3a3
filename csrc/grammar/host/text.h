// JSON strings: escapes, decoded as they are read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lang.h"

namespace tokops::grammar {

// Where one is in an escape: 0 outside; else a kind in the low byte, digits so far above it.
struct Escape {
  enum Kind : uint32_t { kNone, kBackslash, kHex, kHighDone, kHighBackslash, kLowHex };
  static uint32_t make(Kind k, uint32_t digits, uint32_t value, uint32_t high) {
    return k | digits << 3 | value << 6 | high << 22;  // high: 10 bits
  }
  static Kind kind(uint32_t e) { return Kind(e & 7); }
  static uint32_t digits(uint32_t e) { return e >> 3 & 7; }
  static uint32_t value(uint32_t e) { return e >> 6 & 0xffff; }
  static uint32_t high(uint32_t e) { return e >> 22; }
};

inline int hex_digit(uint8_t b) {
  if (b >= '0' && b <= '9') return b - '0';
  const uint8_t l = b | 32;
  return l >= 'a' && l <= 'f' ? l - 'a' + 10 : -1;
}

inline int encode_utf8(uint32_t c, char* out) {
  if (c < 0x80) {
    out[0] = char(c);
    return 1;
  }
  if (c < 0x800) {
    out[0] = char(0xc0 | c >> 6);
    out[1] = char(0x80 | (c & 63));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = char(0xe0 | c >> 12);
    out[1] = char(0x80 | (c >> 6 & 63));
    out[2] = char(0x80 | (c & 63));
    return 3;
  }
  out[0] = char(0xf0 | c >> 18);
  out[1] = char(0x80 | (c >> 12 & 63));
  out[2] = char(0x80 | (c >> 6 & 63));
  out[3] = char(0x80 | (c & 63));
  return 4;
}

// Takes one byte of a JSON string's inside (not the closing quote). Returns false where it can't
// stand there; puts the decoded bytes it completes (0 to 4) in `out`.
inline bool decode_byte(uint32_t& escape, uint8_t b, char* out, int& n) {
  n = 0;
  switch (Escape::kind(escape)) {
    case Escape::kNone:
      if (b < 0x20 || b == '"') return false;
      if (b == '\\') {
        escape = Escape::kBackslash;
        return true;
      }
      out[0] = char(b);
      n = 1;
      return true;
    case Escape::kBackslash: {
      escape = 0;
      n = 1;
      switch (b) {
        case '"':
        case '\\':
        case '/':
          out[0] = char(b);
          return true;
        case 'b':
          out[0] = '\b';
          return true;
        case 'f':
          out[0] = '\f';
          return true;
        case 'n':
          out[0] = '\n';
          return true;
        case 'r':
          out[0] = '\r';
          return true;
        case 't':
          out[0] = '\t';
          return true;
        case 'u':
          n = 0;
          escape = Escape::make(Escape::kHex, 0, 0, 0);
          return true;
        default:
          return false;
      }
    }
    case Escape::kHex: {
      const int h = hex_digit(b);
      if (h < 0) return false;
      const uint32_t digits = Escape::digits(escape) + 1,
                     value = Escape::value(escape) << 4 | uint32_t(h);
      if (digits >= 2) {
        const uint32_t top = value >> (4 * (digits - 2));
        if (top >= 0xdc && top <= 0xdf) return false;  // a low surrogate alone
      }
      if (digits < 4) {
        escape = Escape::make(Escape::kHex, digits, value, 0);
      } else if (value >= 0xd800 && value < 0xdc00) {
        escape = Escape::make(Escape::kHighDone, 0, 0, value - 0xd800);
      } else {
        escape = 0;
        n = encode_utf8(value, out);
      }
      return true;
    }
    case Escape::kHighDone:
      if (b != '\\') return false;
      escape = Escape::make(Escape::kHighBackslash, 0, 0, Escape::high(escape));
      return true;
    case Escape::kHighBackslash:
      if (b != 'u') return false;
      escape = Escape::make(Escape::kLowHex, 0, 0, Escape::high(escape));
      return true;
    case Escape::kLowHex: {
      const int h = hex_digit(b);
      if (h < 0) return false;
      const uint32_t digits = Escape::digits(escape) + 1,
                     value = Escape::value(escape) << 4 | uint32_t(h);
      if (digits == 1 && value != 0xd) return false;
      if (digits == 2 && (value < 0xdc || value > 0xdf)) return false;
      if (digits < 4) {
        escape = Escape::make(Escape::kLowHex, digits, value, Escape::high(escape));
      } else {
        n = encode_utf8(0x10000 + (Escape::high(escape) << 10) + (value - 0xdc00), out);
        escape = 0;
      }
      return true;
    }
  }
  return false;
}

// One escape for all that go on in the same way where any character may stand: what tells them
// apart is how many digits they have and whether these begin a surrogate.
inline uint32_t escape_class(uint32_t e) {
  const uint32_t d = Escape::digits(e), v = Escape::value(e);
  const bool high =
      Escape::kind(e) == Escape::kHex && (d == 1 ? v == 0xd : d > 1 && v >> (4 * d - 6) == 0x36);
  return Escape::make(Escape::kind(e), d, high, 0);
}

// The content of the inside of a JSON string that is well formed; what is left open at its end is
// dropped.
inline std::string decode_text(std::string_view inside) {
  std::string s;
  uint32_t escape = 0;
  char out[4];
  int n;
  for (const char c : inside) {
    if (!decode_byte(escape, uint8_t(c), out, n)) break;
    s.append(out, size_t(n));
  }
  return s;
}

// What equal JSON values share, given the text of one: members sorted, numbers in one spelling,
// strings decoded. The text is well formed.
std::string canonical_text(std::string_view);
// The same form of an object or an array, from what it holds in that form.
std::string canonical_object(const std::map<std::string, std::string>& members);
std::string canonical_array(const std::vector<std::string>& items);

// Code points that an open escape can still become: [low, high], without [0xe000, 0xffff] where
// `split`.
struct EscapeRange {
  uint32_t low, high;
  bool split;
};
inline EscapeRange escape_range(uint32_t e) {
  switch (Escape::kind(e)) {
    case Escape::kBackslash:
      return {0, 0x10ffff, false};
    case Escape::kHex: {
      const uint32_t d = Escape::digits(e), v = Escape::value(e), bits = 4 * (4 - d);
      uint32_t low = v << bits, high = (v << bits) + (1u << bits) - 1;
      // A high surrogate stands for the code points above the first plane.
      if (high >= 0xd800 && low <= 0xdbff) {
        if (d >= 2)
          return {0x10000 + ((std::max(low, 0xd800u) - 0xd800) << 10),
                  0x10000 + ((std::min(high, 0xdbffu) - 0xd800) << 10) + 0x3ff, false};
        high = 0x10ffff;
      }
      return {low, high, d == 1 && v == 0xd};
    }
    case Escape::kHighDone:
    case Escape::kHighBackslash:
      return {0x10000 + (Escape::high(e) << 10), 0x10000 + (Escape::high(e) << 10) + 0x3ff, false};
    case Escape::kLowHex: {
      const uint32_t d = Escape::digits(e), v = Escape::value(e), bits = 4 * (4 - d);
      const uint32_t low = std::max(d ? v << bits : 0, 0xdc00u),
                     high = std::min(d ? (v << bits) + (1u << bits) - 1 : 0xffff, 0xdfffu);
      return {0x10000 + (Escape::high(e) << 10) + (low - 0xdc00),
              0x10000 + (Escape::high(e) << 10) + (high - 0xdc00), false};
    }
    default:
      return {0, 0x10ffff, false};
  }
}

// Whether the language goes on with a code point in [low, high].
bool steps_into(Langs&, Lang, uint32_t low, uint32_t high);

inline bool escape_viable(Langs& langs, Lang q, uint32_t escape) {
  if (escape == 0 || q == langs.text()) return true;
  const EscapeRange r = escape_range(escape);
  if (r.split) return steps_into(langs, q, r.low, 0xd7ff) || steps_into(langs, q, 0x10000, r.high);
  return steps_into(langs, q, r.low, r.high);
}

}  // namespace tokops::grammar
