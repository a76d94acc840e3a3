// Rules that are regular, found bottom-up, become languages.
#include <algorithm>
#include <optional>

#include "syntax.h"

namespace tokops::grammar::front {
namespace {

using Alternatives = std::vector<std::vector<Symbol>>;

constexpr size_t kMostTogether = 6;       // rules of a component that are solved as one system
constexpr size_t kMostAlternatives = 64;  // of a rule while such a system is solved

bool is_rule(const Symbol& s, int32_t rule) { return s.kind == Symbol::kRule && s.id == rule; }
bool is_lang(const Symbol& s) { return s.kind == Symbol::kLang; }
bool equal(const std::vector<Symbol>& a, const std::vector<Symbol>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Symbol& x, const Symbol& y) {
    return x.kind == y.kind && x.id == y.id;
  });
}

// What a rule's own occurrences look like, where each is at an end: A -> before A | A after |
// A between A | base. Its words are then u (between u)* with u = before* base after*.
struct Linear {
  std::vector<Lang> base, before, after, between;
};

std::optional<Linear> linear(const Alternatives& alternatives, int32_t self) {
  Linear found;
  for (const auto& symbols : alternatives) {
    const size_t n = symbols.size();
    const bool first = n > 0 && is_rule(symbols.front(), self);
    const bool last = n > 0 && is_rule(symbols.back(), self);
    if (n == 0) {
      found.base.push_back(kEmptyWord);
    } else if (n == 1 && is_lang(symbols[0])) {
      found.base.push_back(symbols[0].id);
    } else if (n == 1 && first) {
      continue;
    } else if (n == 2 && is_lang(symbols[0]) && last) {
      found.before.push_back(symbols[0].id);
    } else if (n == 2 && first && is_lang(symbols[1])) {
      found.after.push_back(symbols[1].id);
    } else if (n == 2 && first && last) {
      found.between.push_back(kEmptyWord);
    } else if (n == 3 && first && is_lang(symbols[1]) && last) {
      found.between.push_back(symbols[1].id);
    } else {
      return std::nullopt;
    }
  }
  return found;
}

}  // namespace

std::vector<std::vector<int32_t>> components(const std::vector<std::vector<int32_t>>& uses) {
  const int32_t n = int32_t(uses.size());
  std::vector<int32_t> order(n, -1), low(n), stack;
  std::vector<bool> open(n);
  std::vector<std::pair<int32_t, size_t>> path;  // node, next of its uses
  std::vector<std::vector<int32_t>> found;
  int32_t count = 0;
  for (int32_t root = 0; root < n; ++root) {
    if (order[root] >= 0) continue;
    path.emplace_back(root, 0);
    while (!path.empty()) {
      auto& [node, next] = path.back();
      if (next == 0) {
        order[node] = low[node] = count++;
        stack.push_back(node);
        open[node] = true;
      }
      if (next < uses[node].size()) {
        const int32_t used = uses[node][next++];
        if (order[used] < 0) {
          path.emplace_back(used, 0);
        } else if (open[used]) {
          low[node] = std::min(low[node], order[used]);
        }
        continue;
      }
      const int32_t done = node;
      path.pop_back();
      if (!path.empty()) low[path.back().first] = std::min(low[path.back().first], low[done]);
      if (low[done] != order[done]) continue;
      found.emplace_back();
      int32_t member;
      do {
        member = stack.back();
        stack.pop_back();
        open[member] = false;
        found.back().push_back(member);
      } while (member != done);
    }
  }
  return found;
}

void Folder::set_weight(Lang lang, int64_t weight) {
  const int32_t w = int32_t(std::clamp<int64_t>(weight, 1, INT32_MAX / 2));
  const auto [it, added] = rules_.weights.try_emplace(lang, w);
  if (!added) it->second = std::min(it->second, w);
}

void Folder::put_folded(Alternatives& alternatives) const {
  for (auto& symbols : alternatives) {
    for (Symbol& s : symbols) {
      if (s.kind == Symbol::kRule && folded(s.id) >= 0) s = {Symbol::kLang, folded(s.id)};
    }
  }
}

void Folder::join_neighbours(std::vector<Symbol>& symbols) {
  std::vector<Symbol> joined;
  for (size_t i = 0; i < symbols.size();) {
    if (!is_lang(symbols[i])) {
      joined.push_back(symbols[i++]);
      continue;
    }
    size_t end = i;
    int64_t total = 0;
    while (end < symbols.size() && is_lang(symbols[end])) {
      const int32_t w = weight(symbols[end].id);
      if (end > i && total + w > kHeaviest) break;
      total += w;
      ++end;
    }
    Lang lang = symbols[end - 1].id;
    for (size_t j = end - 1; j-- > i;) lang = langs_.concat(symbols[j].id, lang);
    if (lang != kEmptyWord) {
      if (end - i > 1) set_weight(lang, total);
      joined.push_back({Symbol::kLang, lang});
    }
    i = end;
  }
  symbols = std::move(joined);
}

void Folder::tidy(Alternatives& alternatives) {
  Alternatives kept;
  std::vector<std::vector<Lang>> groups(
      1);  // alternatives of one language, in bundles that are not too heavy
  int64_t total = 0;
  size_t place = SIZE_MAX;
  for (auto& symbols : alternatives) {
    join_neighbours(symbols);
    const bool nothing = std::any_of(symbols.begin(), symbols.end(), [](const Symbol& s) {
      return is_lang(s) && s.id == kNothing;
    });
    if (nothing) continue;
    const Lang lang = symbols.empty()                              ? kEmptyWord
                      : symbols.size() == 1 && is_lang(symbols[0]) ? symbols[0].id
                                                                   : -1;
    if (lang < 0) {
      kept.push_back(std::move(symbols));
      continue;
    }
    if (place == SIZE_MAX) place = kept.size();
    const int32_t w = weight(lang);
    if (!groups.back().empty() && total + w > kHeaviest) {
      groups.emplace_back();
      total = 0;
    }
    groups.back().push_back(lang);
    total += w;
  }
  Alternatives langs;
  for (const auto& group : groups) {
    if (group.empty()) continue;
    int64_t sum = 0;
    for (const Lang lang : group) sum += weight(lang);
    const Lang lang = group.size() == 1 ? group[0] : langs_.either(group);
    if (group.size() > 1) set_weight(lang, sum);
    langs.push_back({});
    if (lang != kEmptyWord) langs.back().push_back({Symbol::kLang, lang});
  }
  if (place != SIZE_MAX) kept.insert(kept.begin() + ptrdiff_t(place), langs.begin(), langs.end());
  const auto less = [](const std::vector<Symbol>& a, const std::vector<Symbol>& b) {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(),
                                        [](const Symbol& x, const Symbol& y) {
                                          return std::pair(x.kind, x.id) < std::pair(y.kind, y.id);
                                        });
  };
  std::vector<const std::vector<Symbol>*> sorted;
  for (const auto& symbols : kept) sorted.push_back(&symbols);
  std::stable_sort(sorted.begin(), sorted.end(), [&](auto* a, auto* b) { return less(*a, *b); });
  std::vector<bool> repeated(kept.size());
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (equal(*sorted[i - 1], *sorted[i])) repeated[size_t(sorted[i] - kept.data())] = true;
  }
  alternatives.clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    if (!repeated[i]) alternatives.push_back(std::move(kept[i]));
  }
}

Lang Folder::any_number(const std::vector<Lang>& of) {
  int64_t total = 0;
  for (const Lang lang : of) total += weight(lang);
  const Lang lang = langs_.star(langs_.either(of));
  set_weight(lang, total);
  return lang;
}

bool Folder::fold_alone(int32_t rule, Alternatives alternatives) {
  const auto shape = linear(alternatives, rule);
  if (!shape) return false;
  int64_t once = 0, between = 0;
  for (const auto* part : {&shape->base, &shape->before, &shape->after}) {
    for (const Lang lang : *part) once += weight(lang);
  }
  for (const Lang lang : shape->between) between += weight(lang);
  const int64_t total = shape->between.empty() ? once : 2 * once + between;
  if (total > kHeaviest) return false;
  Lang lang = langs_.either(shape->base);
  if (!shape->before.empty()) lang = langs_.concat(any_number(shape->before), lang);
  if (!shape->after.empty()) lang = langs_.concat(lang, any_number(shape->after));
  if (!shape->between.empty()) {
    lang = langs_.concat(lang, langs_.star(langs_.concat(langs_.either(shape->between), lang)));
  }
  set_weight(lang, total);
  folded_[rule] = lang;
  return true;
}

// Solves a small system of rules that use each other: takes one rule after another out by putting
// its alternatives where it is used, and folds the last.
bool Folder::fold_together(const std::vector<int32_t>& component) {
  if (component.size() > kMostTogether) return false;
  std::vector<Alternatives> local;
  for (const int32_t rule : component) {
    local.push_back(rules_.rules[rule].alternatives);
    if (local.back().size() > kMostAlternatives) return false;
  }
  const size_t last = component.size() - 1;
  for (size_t b = 0; b < last; ++b) {
    const int32_t rule = component[b];
    std::vector<Lang> before, after;
    Alternatives rest;
    for (const auto& symbols : local[b]) {
      const auto own = std::count_if(symbols.begin(), symbols.end(),
                                     [&](const Symbol& s) { return is_rule(s, rule); });
      if (own == 0) {
        rest.push_back(symbols);
      } else if (symbols.size() == 1) {
        continue;
      } else if (symbols.size() == 2 && own == 1 && is_lang(symbols[0])) {
        before.push_back(symbols[0].id);
      } else if (symbols.size() == 2 && own == 1 && is_lang(symbols[1])) {
        after.push_back(symbols[1].id);
      } else {
        return false;
      }
    }
    for (auto& symbols : rest) {
      if (!before.empty()) symbols.insert(symbols.begin(), {Symbol::kLang, any_number(before)});
      if (!after.empty()) symbols.push_back({Symbol::kLang, any_number(after)});
    }
    tidy(rest);
    local[b] = rest;
    for (size_t c = b + 1; c <= last; ++c) {
      Alternatives now;
      for (const auto& symbols : local[c]) {
        Alternatives ways(1);
        for (const Symbol& s : symbols) {
          if (!is_rule(s, rule)) {
            for (auto& way : ways) way.push_back(s);
            continue;
          }
          Alternatives longer;
          for (const auto& way : ways) {
            for (const auto& tail : rest) {
              longer.push_back(way);
              longer.back().insert(longer.back().end(), tail.begin(), tail.end());
            }
          }
          ways = std::move(longer);
          if (ways.size() > kMostAlternatives) return false;
        }
        now.insert(now.end(), ways.begin(), ways.end());
        if (now.size() > kMostAlternatives) return false;
      }
      tidy(now);
      local[c] = std::move(now);
    }
  }
  bool all = true;
  for (size_t b = component.size(); b-- > 0 && all;) {
    put_folded(local[b]);
    tidy(local[b]);
    all = fold_alone(component[b], std::move(local[b]));
  }
  return all;
}

void Folder::fold_component(const std::vector<int32_t>& component, bool recursive) {
  for (const int32_t rule : component) {
    auto& alternatives = rules_.rules[rule].alternatives;
    if (recursive) {  // A -> A says nothing
      std::erase_if(alternatives, [&](const std::vector<Symbol>& symbols) {
        return symbols.size() == 1 && is_rule(symbols[0], rule);
      });
    }
    put_folded(alternatives);
    tidy(alternatives);
  }
  if (component.size() > 1 && fold_together(component)) return;
  for (const int32_t rule : component) {
    if (component.size() > 1) put_folded(rules_.rules[rule].alternatives);
    if (folded(rule) < 0) fold_alone(rule, rules_.rules[rule].alternatives);
  }
}

void Folder::fold(int32_t first) {
  const int32_t n = int32_t(rules_.rules.size());
  folded_.resize(size_t(n), -1);
  std::vector<std::vector<int32_t>> uses(size_t(n - first));
  std::vector<bool> itself(size_t(n - first));
  for (int32_t r = first; r < n; ++r) {
    for (const auto& symbols : rules_.rules[r].alternatives) {
      for (const Symbol& s : symbols) {
        if (s.kind != Symbol::kRule || s.id < first) continue;
        uses[size_t(r - first)].push_back(s.id - first);
        if (s.id == r) itself[size_t(r - first)] = true;
      }
    }
  }
  for (auto& component : components(uses)) {
    const bool recursive = component.size() > 1 || itself[size_t(component[0])];
    for (int32_t& rule : component) rule += first;
    fold_component(component, recursive);
  }
}

}  // namespace tokops::grammar::front
