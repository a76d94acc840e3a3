#include "text.h"

#include "regex.h"

namespace tokops::grammar {

namespace {

std::string sized(const std::string& x) { return std::to_string(x.size()) + ":" + x; }

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// An object or array whose end has not been read, as deep as a text goes.
struct Open {
  bool object;
  std::map<std::string, std::string> members;
  std::vector<std::string> items;
  std::string key;
};

// Reads one value from `at` on.
std::string canonical_value(std::string_view s, size_t& at) {
  const auto space = [&] {
    while (at < s.size() && blank(s[at])) ++at;
  };
  const auto string = [&] {
    const size_t first = ++at;
    while (at < s.size() && s[at] != '"') at += s[at] == '\\' ? 2 : 1;
    const std::string text = decode_text(s.substr(first, std::min(at, s.size()) - first));
    ++at;
    return text;
  };
  const auto scalar = [&]() -> std::string {
    const size_t first = at;
    while (at < s.size() && std::string_view(",]} \t\n\r").find(s[at]) == std::string_view::npos)
      ++at;
    const std::string_view x = s.substr(first, at - first);
    if (x.empty()) return "";
    return x[0] == '-' || (x[0] >= '0' && x[0] <= '9') ? Decimal::parse(x).text() : std::string(x);
  };
  std::vector<Open> open;
  while (true) {
    space();
    std::string value;
    if (!open.empty() && (at >= s.size() || s[at] == '}' || s[at] == ']')) {
      ++at;
      const Open& o = open.back();
      value = o.object ? canonical_object(o.members) : canonical_array(o.items);
      open.pop_back();
    } else if (!open.empty() && s[at] == ',') {
      ++at;
      continue;
    } else {
      if (!open.empty() && open.back().object) {
        open.back().key = string();
        space();
        ++at;  // :
        space();
      }
      if (at < s.size() && (s[at] == '{' || s[at] == '[')) {
        open.push_back({s[at++] == '{', {}, {}, ""});
        continue;
      }
      value = at < s.size() && s[at] == '"' ? "\"" + string() : scalar();
    }
    if (open.empty()) return value;
    if (open.back().object)
      open.back().members[open.back().key] = std::move(value);
    else
      open.back().items.push_back(std::move(value));
  }
}

}  // namespace

std::string canonical_object(const std::map<std::string, std::string>& members) {
  std::string s = "{";
  for (const auto& [k, v] : members) s += sized(k) + sized(v);
  return s;
}

std::string canonical_array(const std::vector<std::string>& items) {
  std::string s = "[";
  for (const std::string& x : items) s += sized(x);
  return s;
}

std::string canonical_text(std::string_view text) {
  size_t at = 0;
  return canonical_value(text, at);
}

bool steps_into(Langs& langs, Lang q, uint32_t low, uint32_t high) {
  const auto alive = [&](Lang l) { return l != kNothing && langs.alive(l); };
  for (uint32_t c = low; c <= high && c < 0x80; ++c)
    if (alive(langs.step(q, uint8_t(c)))) return true;
  // By lead bytes: the ranges of code points under each.
  for (uint32_t lead = 0xc2; lead <= 0xf4; ++lead) {
    const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    const uint32_t first = (lead & (0x3fu >> more)) << (6 * more),
                   last = first + (1u << (6 * more)) - 1;
    if (last < low || first > high) continue;
    const Lang a = langs.step(q, uint8_t(lead));
    if (!alive(a)) continue;
    if (first >= low && last <= high) return true;
    for (uint32_t c = std::max(first, low); c <= std::min(last, high); ++c) {
      Lang x = a;
      for (int k = more; k-- > 0 && x != kNothing;)
        x = langs.step(x, uint8_t(0x80 | (c >> (6 * k) & 63)));
      if (alive(x)) return true;
    }
  }
  return false;
}

}  // namespace tokops::grammar
