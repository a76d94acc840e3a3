#include "infill_grammar.h"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace tokops::grammar::infill {
namespace {

constexpr size_t kMostSymbols = 1 << 20;  // of a grammar, on all right-hand sides
constexpr int64_t kSharingSteps = 20'000'000;

std::vector<std::vector<int32_t>> by_head(const Cfg& g) {
  std::vector<std::vector<int32_t>> found(g.symbols);
  for (size_t i = 0; i < g.productions.size(); ++i)
    found[g.productions[i].head].push_back(int32_t(i));
  return found;
}

void drop_doubles(Cfg& g) {
  std::erase_if(g.productions,
                [](const Production& p) { return p.body.size() == 1 && p.body[0] == p.head; });
  std::sort(g.productions.begin(), g.productions.end());
  g.productions.erase(std::unique(g.productions.begin(), g.productions.end()), g.productions.end());
}

// What derives a word, by counting down the symbols of a right-hand side that are not known to.
std::vector<uint8_t> productive(const Cfg& g, const std::vector<uint8_t>& seed) {
  std::vector<uint8_t> known(g.symbols, 0);
  std::vector<std::vector<int32_t>> used(g.symbols);
  std::vector<int32_t> missing(g.productions.size()), todo;
  const auto learn = [&](int32_t s) {
    if (!known[s]) known[s] = 1, todo.push_back(s);
  };
  for (size_t i = 0; i < g.productions.size(); ++i) {
    missing[i] = int32_t(g.productions[i].body.size());
    for (int32_t s : g.productions[i].body) used[s].push_back(int32_t(i));
    if (missing[i] == 0) learn(g.productions[i].head);
  }
  for (int32_t t = 0; t < g.terminals; ++t) {
    if (seed[t]) learn(t);
  }
  while (!todo.empty()) {
    const int32_t s = todo.back();
    todo.pop_back();
    for (int32_t i : used[s]) {
      if (--missing[i] == 0) learn(g.productions[i].head);
    }
  }
  return known;
}

void drop_useless(Cfg& g, const std::vector<uint8_t>& alive) {
  const auto good = productive(g, alive);
  std::erase_if(g.productions, [&](const Production& p) {
    return !std::all_of(p.body.begin(), p.body.end(), [&](int32_t s) { return good[s]; });
  });
  const auto heads = by_head(g);
  std::vector<uint8_t> seen(g.symbols, 0);
  std::vector<int32_t> todo{g.start};
  seen[g.start] = 1;
  while (!todo.empty()) {
    const int32_t s = todo.back();
    todo.pop_back();
    for (int32_t i : heads[s]) {
      for (int32_t next : g.productions[i].body) {
        if (!seen[next]) seen[next] = 1, todo.push_back(next);
      }
    }
  }
  std::erase_if(g.productions, [&](const Production& p) { return !seen[p.head]; });
  drop_doubles(g);
}

void new_start(Cfg& g) {
  g.productions.push_back({g.symbols, {g.start}});
  g.start = g.symbols++;
}

// Heads with one production that occur once. Without useless symbols these can't form a cycle:
// nothing else would lead into it.
void inline_single_uses(Cfg& g) {
  const auto heads = by_head(g);
  std::vector<int32_t> uses(g.symbols, 0);
  for (const auto& p : g.productions) {
    for (int32_t s : p.body) ++uses[s];
  }
  const auto folds = [&](int32_t s) {
    return !g.terminal(s) && s != g.start && uses[s] == 1 && heads[s].size() == 1;
  };
  std::vector<Production> kept;
  for (const auto& p : g.productions) {
    if (folds(p.head)) continue;
    std::vector<int32_t> body, stack(p.body.rbegin(), p.body.rend());
    while (!stack.empty()) {
      const int32_t s = stack.back();
      stack.pop_back();
      if (!folds(s)) {
        body.push_back(s);
        continue;
      }
      const auto& inner = g.productions[heads[s][0]].body;
      stack.insert(stack.end(), inner.rbegin(), inner.rend());
    }
    kept.push_back({p.head, std::move(body)});
  }
  g.productions = std::move(kept);
  drop_doubles(g);
}

// A -> x y | x z  becomes  A -> x B, B -> y | z.
void factor_left(Cfg& g) {
  std::vector<std::vector<std::vector<int32_t>>> bodies(g.symbols);
  for (auto& p : g.productions) bodies[p.head].push_back(std::move(p.body));
  g.productions.clear();
  for (int32_t head = g.terminals; head < int32_t(bodies.size()); ++head) {
    auto own = std::move(bodies[head]);
    std::sort(own.begin(), own.end());
    own.erase(std::unique(own.begin(), own.end()), own.end());
    for (size_t i = 0; i < own.size();) {
      size_t end = i + 1;
      while (own[i].size() >= 2 && end < own.size() && own[end].size() >= 2 &&
             own[end][0] == own[i][0])
        ++end;
      if (end == i + 1) {
        g.productions.push_back({head, std::move(own[i++])});
        continue;
      }
      // Sorted: what first and last have in common, all have.
      const auto &first = own[i], &last = own[end - 1];
      size_t common = 1;
      while (common < first.size() && common < last.size() && first[common] == last[common])
        ++common;
      std::vector<int32_t> body(first.begin(), first.begin() + common);
      body.push_back(g.symbols);
      std::vector<std::vector<int32_t>> tails;
      for (; i < end; ++i) tails.emplace_back(own[i].begin() + common, own[i].end());
      g.productions.push_back({head, std::move(body)});
      bodies.push_back(std::move(tails));
      ++g.symbols;
    }
  }
  drop_doubles(g);
}

// One head for a pair of neighbours that occurs several times in long bodies, most frequent first
// (Larsson, Moffat, "Offline dictionary-based compression", 1999).
void share_pairs(Cfg& g) {
  for (int64_t steps = kSharingSteps; steps > 0; steps -= int64_t(g.size()) * 8) {
    std::map<std::pair<int32_t, int32_t>, int32_t> counts;
    for (const auto& p : g.productions) {
      if (p.body.size() < 3) continue;
      for (size_t i = 0; i + 1 < p.body.size(); ++i) {
        const std::pair pair{p.body[i], p.body[i + 1]};
        ++counts[pair];
        // Of three equal symbols only one pair can be taken.
        if (i + 2 < p.body.size() && pair.first == pair.second && p.body[i + 2] == pair.first) ++i;
      }
    }
    const auto best =
        std::max_element(counts.begin(), counts.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (best == counts.end() || best->second < 2) return;
    const auto [left, right] = best->first;
    const int32_t head = g.symbols++;
    for (auto& p : g.productions) {
      if (p.body.size() < 3) continue;
      std::vector<int32_t> body;
      for (size_t i = 0; i < p.body.size(); ++i) {
        if (i + 1 < p.body.size() && p.body[i] == left && p.body[i + 1] == right) {
          body.push_back(head);
          ++i;
        } else {
          body.push_back(p.body[i]);
        }
      }
      p.body = std::move(body);
    }
    g.productions.push_back({head, {left, right}});
  }
}

// At most two symbols; equal tails get one head.
void binarise(Cfg& g) {
  std::map<std::pair<int32_t, int32_t>, int32_t> pairs;
  const auto heads = by_head(g);
  for (int32_t s = g.terminals; s < int32_t(heads.size()); ++s) {
    if (s == g.start || heads[s].size() != 1) continue;
    const auto& body = g.productions[heads[s][0]].body;
    if (body.size() == 2) pairs.emplace(std::pair{body[0], body[1]}, s);
  }
  std::vector<Production> added;
  for (auto& p : g.productions) {
    while (p.body.size() > 2) {
      const std::pair pair{p.body[p.body.size() - 2], p.body.back()};
      const auto [at, fresh] = pairs.emplace(pair, g.symbols);
      if (fresh) added.push_back({g.symbols++, {pair.first, pair.second}});
      p.body.pop_back();
      p.body.back() = at->second;
    }
  }
  g.productions.insert(g.productions.end(), added.begin(), added.end());
  drop_doubles(g);
}

// Numbers heads in the order in which a search along first symbols leaves them.
void number(Cfg& g, const std::vector<uint8_t>& nullable_terminals) {
  const auto nullable = productive(g, nullable_terminals);  // of a grammar of the empty word alone
  const auto heads = by_head(g);
  std::vector<int32_t> name(g.symbols, -1);
  int32_t next = g.terminals;
  for (int32_t t = 0; t < g.terminals; ++t) name[t] = t;
  std::vector<uint8_t> seen(g.symbols, 0);
  std::vector<std::pair<int32_t, std::vector<int32_t>>> stack;
  const auto enter = [&](int32_t s) {
    if (g.terminal(s) || seen[s]) return;
    seen[s] = 1;
    std::vector<int32_t> firsts;
    for (int32_t i : heads[s]) {
      for (int32_t x : g.productions[i].body) {
        firsts.push_back(x);
        if (!nullable[x]) break;
      }
    }
    stack.emplace_back(s, std::move(firsts));
  };
  for (int32_t s = g.terminals; s < g.symbols; ++s) {
    if (heads[s].empty()) continue;
    enter(s);
    while (!stack.empty()) {
      auto& [at, firsts] = stack.back();
      if (firsts.empty()) {
        name[at] = next++;
        stack.pop_back();
        continue;
      }
      const int32_t first = firsts.back();
      firsts.pop_back();
      enter(first);
    }
  }
  if (name[g.start] < 0) name[g.start] = next++;
  for (auto& p : g.productions) {
    p.head = name[p.head];
    for (int32_t& s : p.body) s = name[s];
  }
  g.start = name[g.start];
  g.symbols = next;
  std::sort(g.productions.begin(), g.productions.end());
}

}  // namespace

size_t Cfg::size() const {
  size_t total = productions.size();
  for (const auto& p : productions) total += p.body.size();
  return total;
}

Cfg cfg_of(const Rules& rules, std::vector<Lang>& langs_of) {
  std::unordered_map<Lang, int32_t> terminal_of;
  Cfg g;
  for (const auto& rule : rules.rules) {
    for (const auto& body : rule.alternatives) {
      for (const Symbol& s : body) {
        if (s.kind == Symbol::kSchema) {
          throw GrammarError("schema", rule.name,
                             "infilling takes no JSON schema within a grammar");
        }
        if (s.kind == Symbol::kLang &&
            terminal_of.emplace(s.id, int32_t(terminal_of.size())).second) {
          langs_of.push_back(s.id);
        }
      }
    }
  }
  g.terminals = int32_t(langs_of.size());
  g.symbols = g.terminals + int32_t(rules.rules.size());
  g.start = g.terminals + rules.start;
  for (size_t i = 0; i < rules.rules.size(); ++i) {
    for (const auto& body : rules.rules[i].alternatives) {
      Production p{g.terminals + int32_t(i), {}};
      for (const Symbol& s : body) {
        p.body.push_back(s.kind == Symbol::kLang ? terminal_of.at(s.id) : g.terminals + s.id);
      }
      g.productions.push_back(std::move(p));
    }
  }
  return g;
}

void allow_between(Cfg& g) {
  const int32_t between = g.terminals++;
  const auto moved = [&](int32_t s) { return s < between ? s : s + 1; };
  for (auto& p : g.productions) {
    std::vector<int32_t> body;
    for (int32_t s : p.body) {
      body.push_back(moved(s));
      if (s < between) body.push_back(between);
    }
    p = {moved(p.head), std::move(body)};
  }
  g.productions.push_back({g.symbols + 1, {between, moved(g.start)}});
  g.start = g.symbols + 1;
  g.symbols += 2;
}

Cfg normal_form(Cfg g, const std::vector<uint8_t>& alive, const std::vector<uint8_t>& nullable,
                const Observer& observer) {
  if (g.size() > kMostSymbols) {
    throw BudgetError("grammar size", "", "more than " + std::to_string(kMostSymbols) + " symbols");
  }
  const auto step = [&](const char* name) {
    if (observer) observer(name, g);
  };
  const auto clean = [&] {
    drop_useless(g, alive);
    step("drop useless");
  };
  new_start(g), step("new start");
  clean();
  inline_single_uses(g), step("inline single uses");
  clean();
  factor_left(g), step("factor left");
  clean();
  share_pairs(g), step("share pairs");
  clean();
  binarise(g), step("binarise");
  clean();
  number(g, nullable), step("number");
  return g;
}

}  // namespace tokops::grammar::infill
