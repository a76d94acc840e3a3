#include "text.h"

#include "regex.h"

namespace tokops::grammar {

namespace {

std::string sized(const std::string& x) { return std::to_string(x.size()) + ":" + x; }

// Reads one value from `at` on.
std::string canonical_value(std::string_view s, size_t& at) {
  const auto space = [&] {
    while (at < s.size() && (s[at] == ' ' || s[at] == '\t' || s[at] == '\n' || s[at] == '\r')) ++at;
  };
  const auto string = [&] {
    const size_t first = ++at;
    while (at < s.size() && s[at] != '"') at += s[at] == '\\' ? 2 : 1;
    const std::string text = decode_text(s.substr(first, std::min(at, s.size()) - first));
    ++at;
    return text;
  };
  space();
  if (at >= s.size()) return "";
  if (s[at] == '"') return "\"" + string();
  if (s[at] == '{' || s[at] == '[') {
    const char open = s[at++];
    std::map<std::string, std::string> members;
    std::vector<std::string> items;
    for (space(); at < s.size() && s[at] != '}' && s[at] != ']'; space()) {
      if (s[at] == ',') {
        ++at;
        continue;
      }
      if (open == '[') {
        items.push_back(canonical_value(s, at));
        continue;
      }
      const std::string key = string();
      space();
      ++at;  // :
      members[key] = canonical_value(s, at);
    }
    ++at;
    return open == '{' ? canonical_object(members) : canonical_array(items);
  }
  const size_t first = at;
  while (at < s.size() && std::string_view(",]} \t\n\r").find(s[at]) == std::string_view::npos)
    ++at;
  const std::string_view scalar = s.substr(first, at - first);
  return scalar[0] == '-' || (scalar[0] >= '0' && scalar[0] <= '9') ? Decimal::parse(scalar).text()
                                                                    : std::string(scalar);
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
