// Questions about languages. Where no complement, intersection or loop is inside, the expression
// itself tells; else the automaton is searched, and what is found out is kept.
#include <algorithm>
#include <queue>

#include "lang_impl.h"

namespace tokops::grammar {

void Langs::Impl::spend(int64_t steps) {
  left -= steps;
  if (left < 0) throw BudgetError("fuel", "", "a question about a language takes too many steps");
}

bool Langs::Impl::alive(Lang lang) {
  uint8_t known = facts(lang);
  if (known & (kAlive | kDead)) return known & kAlive;
  const Expression& e = at(lang);
  bool result;
  switch (e.kind) {
    case Kind::kConcat:
      result = alive(e.a) && alive(e.b);
      break;
    case Kind::kEither:
      result = std::ranges::any_of(items(lang), [&](Lang x) { return alive(x); });
      break;
    case Kind::kRepeat:
      result = alive(e.a);
      break;
    case Kind::kBoth: {
      // Infinitely many words, less finitely many.
      auto parts = items(lang);
      Lang rest = -1;
      bool less = true;
      for (Lang x : parts) {
        if (is(x, Kind::kNot)) {
          less &= (facts(at(x).a) & kFinite) != 0;
        } else {
          less &= rest < 0;
          rest = x;
        }
      }
      if (less && (rest < 0 || (facts(rest) & kInfinite))) {
        result = true;
        break;
      }
      return search_alive(lang);
    }
    default:
      return search_alive(lang);
  }
  learn(lang, result ? kAlive : kDead);
  return result;
}

// Best first: the state whose words may be shortest is looked at next.
bool Langs::Impl::search_alive(Lang start) {
  struct Seen {
    Lang lang;
    int32_t from;
  };
  std::vector<Seen> seen{{start, -1}};
  std::unordered_map<Lang, bool> found{{start, true}};
  std::priority_queue<std::pair<int64_t, int32_t>> open;  // the later of equals first
  auto push = [&](int32_t i) { open.emplace(-int64_t(at(seen[i].lang).shortest), i); };
  push(0);
  while (!open.empty()) {
    int32_t i = open.top().second;
    open.pop();
    const Classes& classes = *partitions[classes_of(seen[i].lang)];
    for (int c = 0; c < classes.count; ++c) {
      spend();
      Lang next = step(seen[i].lang, classes.first[c]);
      uint8_t known = facts(next);
      if (known & kDead) continue;
      if (known & kAlive) {
        for (int32_t k = i; k >= 0; k = seen[k].from) learn(seen[k].lang, kAlive);
        return true;
      }
      if (!found.emplace(next, true).second) continue;
      seen.push_back({next, i});
      push(int32_t(seen.size()) - 1);
    }
  }
  for (const Seen& s : seen) learn(s.lang, kDead);
  return false;
}

bool Langs::Impl::infinite(Lang lang) {
  uint8_t known = facts(lang);
  if (known & (kInfinite | kFinite)) return known & kInfinite;
  bool result;
  const Expression& e = at(lang);
  switch (e.kind) {
    case Kind::kConcat:
      result = alive(e.a) && alive(e.b) && (infinite(e.a) || infinite(e.b));
      break;
    case Kind::kEither:
      result = std::ranges::any_of(items(lang), [&](Lang x) { return infinite(x); });
      break;
    default:
      result = alive(lang) && search_cycle(lang);
  }
  learn(lang, result ? kInfinite : kFinite);
  return result;
}

// Whether one can come back to a state on the way to a word.
bool Langs::Impl::search_cycle(Lang start) {
  struct Frame {
    Lang lang;
    int c;
  };
  std::unordered_map<Lang, bool> on_path{{start, true}};
  std::vector<Frame> path{{start, 0}};
  while (!path.empty()) {
    Frame& top = path.back();
    const Classes& classes = *partitions[classes_of(top.lang)];
    if (top.c == classes.count) {
      on_path[top.lang] = false;
      learn(top.lang, kFinite);
      path.pop_back();
      continue;
    }
    spend();
    Lang next = step(top.lang, classes.first[top.c++]);
    if (!alive(next)) continue;
    if (facts(next) & kInfinite) return true;
    if (facts(next) & kFinite) continue;
    auto [entry, fresh] = on_path.emplace(next, true);
    if (fresh) {
      path.push_back({next, 0});
    } else if (entry->second) {
      return true;
    }
  }
  return false;
}

// Hopcroft and Karp: states that must agree are joined, until a pair differs.
bool Langs::Impl::same(Lang a, Lang b) {
  std::unordered_map<Lang, Lang> leader;
  auto find = [&](Lang x) {
    for (;;) {
      auto entry = leader.find(x);
      if (entry == leader.end() || entry->second == x) return x;
      auto above = leader.find(entry->second);
      if (above != leader.end()) entry->second = above->second;
      x = entry->second;
    }
  };
  std::vector<std::pair<Lang, Lang>> open{{a, b}};
  while (!open.empty()) {
    auto [x, y] = open.back();
    open.pop_back();
    x = find(x), y = find(y);
    if (x == y) continue;
    if (accepts(x) != accepts(y)) return false;
    if (x == kNothing || y == kNothing) {
      if (alive(x) || alive(y)) return false;
    }
    leader[std::max(x, y)] = std::min(x, y);
    const Classes& classes = *partitions[meet(classes_of(x), classes_of(y))];
    for (int c = 0; c < classes.count; ++c) {
      spend();
      open.emplace_back(step(x, classes.first[c]), step(y, classes.first[c]));
    }
  }
  return true;
}

}  // namespace tokops::grammar
