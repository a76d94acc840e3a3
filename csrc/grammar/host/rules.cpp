#include "rules.h"

#include <algorithm>

#include "regex.h"
#include "syntax.h"

namespace tokops::grammar {
namespace {

using front::components;
using front::Folder;
using Alternatives = std::vector<std::vector<Symbol>>;

// Drops the alternatives that derive nothing.
void drop_unproductive(Langs& langs, Rules& rules) {
  const size_t n = rules.rules.size();
  struct Place {
    size_t rule, alternative;
  };
  std::vector<std::vector<Place>> users(n);
  std::vector<std::vector<int64_t>> missing(
      n);  // symbols of an alternative not known to derive anything
  std::vector<bool> productive(n);
  std::vector<size_t> found;
  const auto done = [&](size_t rule) {
    if (productive[rule]) return;
    productive[rule] = true;
    found.push_back(rule);
  };
  const auto alive = [&](const Symbol& s) {
    return s.kind == Symbol::kSchema || (s.kind == Symbol::kLang && langs.alive(s.id));
  };
  for (size_t r = 0; r < n; ++r) {
    const auto& alternatives = rules.rules[r].alternatives;
    missing[r].resize(alternatives.size());
    for (size_t a = 0; a < alternatives.size(); ++a) {
      for (const Symbol& s : alternatives[a]) {
        if (alive(s)) continue;
        ++missing[r][a];
        if (s.kind == Symbol::kRule) users[size_t(s.id)].push_back({r, a});
      }
      if (missing[r][a] == 0) done(r);
    }
  }
  while (!found.empty()) {
    const size_t rule = found.back();
    found.pop_back();
    for (const auto& [r, a] : users[rule]) {
      if (--missing[r][a] == 0) done(r);
    }
  }
  if (!productive[size_t(rules.start)]) {
    throw GrammarError("start", rules.rules[size_t(rules.start)].name, "no text can be derived");
  }
  for (size_t r = 0; r < n; ++r) {
    size_t a = 0;
    std::erase_if(rules.rules[r].alternatives,
                  [&](const std::vector<Symbol>&) { return missing[r][a++] > 0; });
  }
}

// Drops rules and schemas that the start can't reach, and numbers the rest anew in the order in
// which they are met.
void keep_reachable(Rules& rules) {
  std::vector<int32_t> number(rules.rules.size(), -1), schema(rules.schemas.size(), -1), order;
  std::vector<std::string> schemas, places;
  const auto meet = [&](int32_t rule) {
    if (number[size_t(rule)] >= 0) return;
    number[size_t(rule)] = int32_t(order.size());
    order.push_back(rule);
  };
  meet(rules.start);
  std::vector<Rule> kept;
  for (size_t i = 0; i < order.size(); ++i) {
    kept.push_back(std::move(rules.rules[size_t(order[i])]));
    for (auto& symbols : kept.back().alternatives) {
      for (Symbol& s : symbols) {
        if (s.kind == Symbol::kRule) {
          meet(s.id);
          s.id = number[size_t(s.id)];
        } else if (s.kind == Symbol::kSchema) {
          int32_t& to = schema[size_t(s.id)];
          if (to < 0) {
            to = int32_t(schemas.size());
            schemas.push_back(std::move(rules.schemas[size_t(s.id)]));
            places.push_back(std::move(rules.places[size_t(s.id)]));
          }
          s.id = to;
        }
      }
    }
  }
  rules.rules = std::move(kept);
  rules.schemas = std::move(schemas);
  rules.places = std::move(places);
  rules.start = 0;
}

// Puts the content of a rule where it is used, if that makes the grammar no longer: rules of one
// alternative that are used once or hold at most one symbol, and rules that are the whole of the
// one alternative they are used in.
void put_in_place(Rules& rules) {
  const size_t n = rules.rules.size();
  std::vector<int64_t> uses(n);
  std::vector<std::vector<int32_t>> used(n);
  std::vector<bool> ready(n);
  for (size_t r = 0; r < n; ++r) {
    for (const auto& symbols : rules.rules[r].alternatives) {
      for (const Symbol& s : symbols) {
        if (s.kind != Symbol::kRule) continue;
        ++uses[size_t(s.id)];
        used[r].push_back(s.id);
      }
    }
  }
  const auto usable = [&](const Symbol& s) {
    return s.kind == Symbol::kRule && ready[size_t(s.id)] && s.id != rules.start;
  };
  for (const auto& component : components(used)) {
    for (const int32_t rule : component) {
      Alternatives now;
      for (auto& symbols : rules.rules[size_t(rule)].alternatives) {
        if (symbols.size() == 1 && usable(symbols[0]) && uses[size_t(symbols[0].id)] == 1) {
          const auto& inner = rules.rules[size_t(symbols[0].id)].alternatives;
          now.insert(now.end(), inner.begin(), inner.end());
          continue;
        }
        std::vector<Symbol> flat;
        for (const Symbol& s : symbols) {
          const Alternatives* inner = usable(s) ? &rules.rules[size_t(s.id)].alternatives : nullptr;
          if (inner && inner->size() == 1 && (uses[size_t(s.id)] == 1 || (*inner)[0].size() <= 1)) {
            flat.insert(flat.end(), (*inner)[0].begin(), (*inner)[0].end());
          } else {
            flat.push_back(s);
          }
        }
        now.push_back(std::move(flat));
      }
      rules.rules[size_t(rule)].alternatives = std::move(now);
      ready[size_t(rule)] = true;
    }
  }
}

// A -> x A | y says the same as A -> M y, M -> "" | M x. A matcher that goes from left to right
// then has one place to return to, and not one for each x.
void turn_right_recursion(Rules& rules) {
  const size_t n = rules.rules.size();
  for (size_t r = 0; r < n; ++r) {
    const auto is_self = [&](const Symbol& s) {
      return s.kind == Symbol::kRule && s.id == int32_t(r);
    };
    Alternatives more, rest;
    bool left = false;
    for (auto& symbols : rules.rules[r].alternatives) {
      left = left || (!symbols.empty() && is_self(symbols[0]));
      const bool right = symbols.size() > 1 && is_self(symbols.back());
      (right ? more : rest).push_back(symbols);
    }
    if (left || more.empty()) continue;
    const Symbol many = {Symbol::kRule, int32_t(rules.rules.size())};
    for (auto& symbols : more) {
      symbols.pop_back();
      symbols.insert(symbols.begin(), many);
    }
    for (auto& symbols : rest) symbols.insert(symbols.begin(), many);
    more.insert(more.begin(), std::vector<Symbol>());
    rules.rules[r].alternatives = std::move(rest);
    rules.rules.push_back({rules.rules[r].name + ".many", std::move(more)});
  }
}

}  // namespace

void simplify(Langs& langs, Rules& rules) {
  drop_unproductive(langs, rules);
  keep_reachable(rules);
  Folder folder(langs, rules);
  folder.fold(0);
  Rule& start = rules.rules[size_t(rules.start)];
  if (const Lang lang = folder.folded(rules.start); lang >= 0) {
    start.alternatives.assign(1, {});
    if (lang != kEmptyWord) start.alternatives[0].push_back({Symbol::kLang, lang});
  }
  keep_reachable(rules);
  put_in_place(rules);
  turn_right_recursion(rules);
  keep_reachable(rules);
  for (Rule& rule : rules.rules) folder.tidy(rule.alternatives);
}

Rules regex_rules(Langs& langs, std::string_view pattern) {
  RegexOptions options;
  options.search = false;
  const front::Source source(pattern);
  const Lang lang = [&] {
    try {
      return regex(langs, pattern, options, "regex");
    } catch (const BudgetError& e) {
      throw BudgetError(e.keyword, source.where(0), e.reason);
    } catch (const GrammarError& e) {
      throw GrammarError(e.keyword, source.where(e.offset < 0 ? 0 : size_t(e.offset)), e.reason);
    }
  }();
  Rules rules;
  rules.rules.push_back({"root", {{{Symbol::kLang, lang}}}});
  return rules;
}

}  // namespace tokops::grammar
