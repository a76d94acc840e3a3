#include "compact.h"

#include <algorithm>
#include <array>
#include <climits>
#include <deque>
#include <unordered_map>

#include "text.h"

namespace tokops::grammar {

namespace {

struct Explored {
  std::vector<Lang> states;
  std::vector<std::array<int32_t, 256>> next;  // -1: nothing
};

// False where there are more than `most` states.
bool explore(Langs& langs, Lang start, int32_t most, Explored& out) {
  std::unordered_map<Lang, int32_t> index{{start, 0}};
  out.states.push_back(start);
  for (size_t i = 0; i < out.states.size(); ++i) {
    if (int32_t(out.states.size()) > most) return false;
    const Lang q = out.states[i];
    out.next.emplace_back();
    out.next.back().fill(-1);
    const uint8_t* const classes = langs.classes(q);
    int32_t of_class[256];
    std::fill_n(of_class, 256, -2);
    for (int b = 0; b < 256; ++b) {
      int32_t& to = of_class[classes[b]];
      if (to == -2) {
        const Lang n = langs.step(q, uint8_t(b));
        if (n == kNothing) {
          to = -1;
        } else {
          const auto [at, fresh] = index.try_emplace(n, int32_t(out.states.size()));
          if (fresh) out.states.push_back(n);
          to = at->second;
        }
      }
      out.next[i][size_t(b)] = to;
    }
  }
  return true;
}

// States from which an accepting one is reached.
std::vector<uint8_t> useful(Langs& langs, const Explored& e) {
  const size_t n = e.states.size();
  std::vector<std::vector<int32_t>> back(n);
  for (size_t i = 0; i < n; ++i) {
    int32_t last = -1;
    for (int b = 0; b < 256; ++b)
      if (const int32_t t = e.next[i][size_t(b)]; t >= 0 && t != last)
        back[size_t(last = t)].push_back(int32_t(i));
  }
  std::vector<uint8_t> live(n, 0);
  std::vector<int32_t> todo;
  for (size_t i = 0; i < n; ++i)
    if (langs.accepts(e.states[i])) {
      live[i] = 1;
      todo.push_back(int32_t(i));
    }
  while (!todo.empty()) {
    const int32_t i = todo.back();
    todo.pop_back();
    for (const int32_t p : back[size_t(i)])
      if (!live[size_t(p)]) {
        live[size_t(p)] = 1;
        todo.push_back(p);
      }
  }
  return live;
}

}  // namespace

Lang compact(Langs& langs, Lang lang, int32_t most) {
  if (lang == kNothing || lang == kEmptyWord || lang == langs.text() || lang == langs.any_bytes())
    return lang;
  const std::string name = "compact:" + std::to_string(lang);
  if (const auto known = langs.named(name)) return *known;
  Explored e;
  Lang result = lang;
  if (explore(langs, lang, most, e)) {
    const std::vector<uint8_t> live = useful(langs, e);
    if (!live[0]) {
      result = kNothing;
    } else if (std::find(e.states.begin(), e.states.end(), langs.text()) == e.states.end()) {
      // (What becomes text as a whole is left as it is: masks of text are shared by all grammars.)
      const size_t n = e.states.size();
      std::vector<int32_t> group(n, -1);
      int32_t groups = 0;
      for (size_t i = 0; i < n; ++i)
        if (live[i]) group[i] = groups++;
      auto dfa = std::make_shared<Dfa>();
      dfa->targets.assign(size_t(groups) * 256, -1);
      dfa->accepting.assign(size_t(groups), 0);
      for (size_t i = 0; i < n; ++i) {
        if (group[i] < 0) continue;
        dfa->accepting[size_t(group[i])] = langs.accepts(e.states[i]);
        for (int b = 0; b < 256; ++b)
          if (const int32_t t = e.next[i][size_t(b)]; t >= 0 && group[size_t(t)] >= 0)
            dfa->targets[size_t(group[i]) * 256 + size_t(b)] = group[size_t(t)];
      }
      result = langs.dfa(std::move(dfa), group[0]);
    }
  }
  langs.keep(name, result);
  return result;
}

int32_t fewest_chars(Langs& langs, Lang lang) {
  if (langs.accepts(lang)) return 0;
  {
    const std::lock_guard guard(langs.chars.lock);
    if (const auto at = langs.chars.of.find(lang); at != langs.chars.of.end()) return at->second;
  }
  // By numbers of code points: a continuation byte costs nothing.
  int32_t found = -1;
  std::unordered_map<Lang, int32_t> best{{lang, 0}};
  std::deque<std::pair<Lang, int32_t>> todo{{lang, 0}};
  while (!todo.empty() && best.size() < 20000) {
    const auto [q, d] = todo.front();
    todo.pop_front();
    if (best[q] < d) continue;
    if (langs.accepts(q)) {
      found = d;
      break;
    }
    const uint8_t* const classes = langs.classes(q);
    uint64_t seen[4] = {};
    for (int b = 0; b < 256; ++b) {
      const uint8_t c = classes[b];
      if (seen[c >> 6] >> (c & 63) & 1) continue;
      seen[c >> 6] |= uint64_t(1) << (c & 63);
      const Lang n = langs.step(q, uint8_t(b));
      if (n == kNothing) continue;
      const int32_t cost = (b & 0xc0) != 0x80;
      const auto [at, fresh] = best.try_emplace(n, d + cost);
      if (!fresh && at->second <= d + cost) continue;
      at->second = d + cost;
      if (cost)
        todo.emplace_back(n, d + cost);
      else
        todo.emplace_front(n, d);
    }
  }
  if (found < 0) found = std::max(0, langs.lengths(lang).shortest);
  const std::lock_guard guard(langs.chars.lock);
  if (langs.chars.of.size() > 200000) langs.chars.of.clear();
  langs.chars.of.emplace(lang, found);
  return found;
}

int32_t fewest_after_escape(Langs& langs, Lang lang, uint32_t escape) {
  constexpr int32_t kNone = INT32_MAX;
  const auto after = [&](Lang q) {
    return q != kNothing && langs.alive(q) ? 1 + fewest_chars(langs, q) : kNone;
  };
  const EscapeRange range = escape_range(escape);
  int32_t best = kNone;
  if (range.low == 0 && range.high == 0x10ffff) {
    if (lang == langs.text()) return 1;
    if (const int32_t n = fewest_chars(langs, lang); n > 0)
      return n;  // the next character of the shortest word
    // Any character at all.
    const auto walk = [&](auto&& self, Lang q, int more) -> void {
      if (q == kNothing) return;
      if (more == 0) {
        best = std::min(best, after(q));
        return;
      }
      const uint8_t* const classes = langs.classes(q);
      uint64_t seen[4] = {};
      for (int b = 0x80; b < 0xc0 && best > 1; ++b) {
        const uint8_t k = classes[b];
        if (seen[k >> 6] >> (k & 63) & 1) continue;
        seen[k >> 6] |= uint64_t(1) << (k & 63);
        self(self, langs.step(q, uint8_t(b)), more - 1);
      }
    };
    for (int b = 0; b < 0x80 && best > 1; ++b)
      best = std::min(best, after(langs.step(lang, uint8_t(b))));
    for (int b = 0xc2; b < 0xf5 && best > 1; ++b)
      walk(walk, langs.step(lang, uint8_t(b)), b < 0xe0 ? 1 : b < 0xf0 ? 2 : 3);
    return best;
  }
  for (uint32_t p = range.low; p <= range.high && best > 1; ++p) {
    if (range.split && p == 0xd800) p = 0x10000;
    if (p >= 0xd800 && p < 0xe000) continue;
    char out[4];
    const int n = encode_utf8(p, out);
    Lang q = lang;
    for (int i = 0; i < n && q != kNothing; ++i) q = langs.step(q, uint8_t(out[i]));
    best = std::min(best, after(q));
  }
  return best;
}

bool evenly_long(Langs& langs, Lang lang, int32_t most) {
  if (lang == langs.text()) return true;
  const std::string name = "even:" + std::to_string(lang);
  if (const auto known = langs.named(name)) return *known != kNothing;
  const auto decide = [&] {
    Explored e;
    if (!explore(langs, lang, most, e)) return false;
    const std::vector<uint8_t> live = useful(langs, e);
    const size_t n = e.states.size();
    // Fewest code points to the end.
    std::vector<std::vector<std::pair<int32_t, int32_t>>> back(n);  // (from, code points begun)
    for (size_t i = 0; i < n; ++i)
      for (int b = 0; b < 256; ++b)
        if (const int32_t t = e.next[i][size_t(b)]; t >= 0 && live[size_t(t)]) {
          const std::pair<int32_t, int32_t> edge{int32_t(i), (b & 0xc0) != 0x80};
          if (back[size_t(t)].empty() || back[size_t(t)].back() != edge)
            back[size_t(t)].push_back(edge);
        }
    std::vector<int32_t> fewest(n, INT32_MAX);
    std::deque<int32_t> todo;
    const auto lower = [&](int32_t i, int32_t d, bool front) {
      if (d >= fewest[size_t(i)]) return;
      fewest[size_t(i)] = d;
      if (front)
        todo.push_front(i);
      else
        todo.push_back(i);
    };
    for (size_t i = 0; i < n; ++i)
      if (langs.accepts(e.states[i])) lower(int32_t(i), 0, false);
    while (!todo.empty()) {
      const int32_t i = todo.front();
      todo.pop_front();
      for (const auto& [from, chars] : back[size_t(i)])
        lower(from, fewest[size_t(i)] + chars, chars == 0);
    }
    // Where every state has a next one that needs no more than itself, one code point more than
    // the fewest is possible everywhere, and so on.
    std::vector<int32_t> ways(n, 0);
    for (size_t t = 0; t < n; ++t)
      if (live[t])
        for (const auto& [from, chars] : back[t])
          ways[size_t(from)] += fewest[t] <= fewest[size_t(from)];
    for (size_t i = 0; i < n; ++i)
      if (live[i] && ways[i] == 0) return false;
    return true;
  };
  const bool even = decide();
  langs.keep(name, even ? kEmptyWord : kNothing);
  return even;
}

bool endless(Langs& langs, Lang lang, int32_t most) {
  if (lang == langs.text()) return true;
  const std::string name = "endless:" + std::to_string(lang);
  if (const auto known = langs.named(name)) return *known != kNothing;
  Explored e;
  bool all = explore(langs, lang, most, e);
  for (size_t i = 0; all && i < e.states.size(); ++i)
    all = !langs.alive(e.states[i]) || langs.infinite(e.states[i]);
  langs.keep(name, all ? kEmptyWord : kNothing);
  return all;
}

}  // namespace tokops::grammar
