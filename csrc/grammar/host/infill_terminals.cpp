#include "infill_terminals.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

namespace tokops::grammar::infill {
namespace {

constexpr size_t kMostStates = 1 << 16;
constexpr size_t kMostReach = size_t(64) << 20;  // bytes of all `reach` tables
constexpr size_t kMostPairs = 1 << 20;           // of states of two terminals, for kLongest

// Over bytes, before classes are known.
struct Raw {
  std::vector<int32_t> next;  // [states, 256]
  std::vector<uint8_t> accepting;
};

Raw explore(Langs& langs, Lang start, size_t& states) {
  Raw raw;
  if (!langs.alive(start)) return raw;
  std::unordered_map<Lang, int32_t> number{{start, 0}};
  std::vector<Lang> order{start};
  for (size_t i = 0; i < order.size(); ++i) {
    if (++states > kMostStates) {
      throw BudgetError("terminal states", "",
                        "more than " + std::to_string(kMostStates) + " in all terminals");
    }
    raw.accepting.push_back(langs.accepts(order[i]));
    for (int b = 0; b < 256; ++b) {
      const Lang to = langs.step(order[i], uint8_t(b));
      int32_t target = -1;
      if (to != kNothing && langs.alive(to)) {
        const auto [at, fresh] = number.emplace(to, int32_t(order.size()));
        if (fresh) order.push_back(to);
        target = at->second;
      }
      raw.next.push_back(target);
    }
  }
  return raw;
}

void find_classes(Terminals& out, const std::vector<Raw>& raws) {
  // Bytes start as one class, which is split by every row of targets.
  std::array<int32_t, 256> of{};
  int32_t count = 1;
  for (const Raw& raw : raws) {
    for (size_t row = 0; row < raw.accepting.size() && count < 256; ++row) {
      std::map<std::pair<int32_t, int32_t>, int32_t> split;
      for (int b = 0; b < 256; ++b) {
        of[b] = split.emplace(std::pair{of[b], raw.next[row * 256 + b]}, int32_t(split.size()))
                    .first->second;
      }
      count = int32_t(split.size());
    }
  }
  const auto rank = [](int b) {
    if (b >= 'a' && b <= 'z') return 0;
    if (b >= 'A' && b <= 'Z') return 1;
    if (b >= '0' && b <= '9') return 2;
    if (b == ' ') return 3;
    if (b > ' ' && b < 127) return 4;
    return b == '\n' ? 5 : b < 128 ? 6 : 7;
  };
  out.classes = count;
  out.spelled.assign(count, 0);
  std::vector<int> best(count, 8);
  for (int b = 0; b < 256; ++b) {
    out.class_of[b] = uint8_t(of[b]);
    if (rank(b) < best[of[b]]) best[of[b]] = rank(b), out.spelled[of[b]] = uint8_t(b);
  }
}

// Merges states that accept the same words (Moore), and keeps the start first.
Terminal reduce(const Raw& raw, const Terminals& t) {
  const int32_t n = int32_t(raw.accepting.size());
  Terminal out;
  if (n == 0) return out;
  std::vector<int32_t> block(raw.accepting.begin(), raw.accepting.end());
  std::vector<int32_t> sample(t.classes);
  for (int b = 0; b < 256; ++b) sample[t.class_of[b]] = b;
  int32_t blocks = 0;
  // Each round but the last splits a block; large automata are left as they are after some.
  for (int round = 0; round < (n <= 256 ? n + 1 : 0); ++round) {
    std::map<std::vector<int32_t>, int32_t> found;
    std::vector<int32_t> now(n);
    for (int32_t s = 0; s < n; ++s) {
      std::vector<int32_t> row{block[s]};
      for (int32_t b : sample) {
        const int32_t to = raw.next[s * 256 + b];
        row.push_back(to < 0 ? -1 : block[to]);
      }
      now[s] = found.emplace(std::move(row), int32_t(found.size())).first->second;
    }
    block = std::move(now);
    const bool stable = int32_t(found.size()) == blocks;
    blocks = int32_t(found.size());
    if (stable) break;
  }
  if (blocks == 0) {
    std::iota(block.begin(), block.end(), 0);
    blocks = n;
  }
  // State 0 was seen first in the last round, so its block is block 0.
  out.states = blocks;
  out.next.assign(size_t(blocks) * t.classes, -1);
  out.accepting.assign(blocks, 0);
  for (int32_t s = 0; s < n; ++s) {
    out.accepting[block[s]] = raw.accepting[s];
    for (int32_t c = 0; c < t.classes; ++c) {
      const int32_t to = raw.next[s * 256 + sample[c]];
      out.next[size_t(block[s]) * t.classes + c] = to < 0 ? -1 : block[to];
    }
  }
  return out;
}

// States that one or more bytes lead to, by strongly connected components in reverse order
// (Tarjan).
void close(Terminal& t, int32_t classes) {
  const int32_t n = t.states;
  t.words = (n + 63) / 64;
  t.reach.assign(size_t(n) * t.words, 0);
  std::vector<int32_t> index(n, -1), low(n), open;
  std::vector<uint8_t> is_open(n, 0);
  std::vector<std::pair<int32_t, int32_t>> stack;
  int32_t count = 0;
  for (int32_t root = 0; root < n; ++root) {
    if (index[root] >= 0) continue;
    stack.emplace_back(root, 0);
    while (!stack.empty()) {
      const int32_t s = stack.back().first;
      if (stack.back().second == 0) {
        index[s] = low[s] = count++;
        open.push_back(s);
        is_open[s] = 1;
      }
      bool deeper = false;
      while (stack.back().second < classes) {
        const int32_t to = t.next[size_t(s) * classes + stack.back().second++];
        if (to < 0) continue;
        if (index[to] < 0) {
          stack.emplace_back(to, 0);
          deeper = true;
          break;
        }
        if (is_open[to]) low[s] = std::min(low[s], index[to]);
      }
      if (deeper) continue;
      stack.pop_back();
      if (!stack.empty()) low[stack.back().first] = std::min(low[stack.back().first], low[s]);
      if (low[s] != index[s]) continue;
      const auto first = std::find(open.begin(), open.end(), s);
      const std::vector<int32_t> members(first, open.end());
      open.erase(first, open.end());
      std::vector<uint64_t> row(t.words, 0);
      for (int32_t m : members) {
        is_open[m] = 0;
        for (int32_t c = 0; c < classes; ++c) {
          const int32_t to = t.next[size_t(m) * classes + c];
          if (to < 0) continue;
          row[to >> 6] |= uint64_t(1) << (to & 63);
          for (int32_t w = 0; w < t.words; ++w) row[w] |= t.reach[size_t(to) * t.words + w];
        }
      }
      for (int32_t m : members)
        std::copy(row.begin(), row.end(), t.reach.begin() + size_t(m) * t.words);
    }
  }
}

// Bytes that make some word of `t` a word of `u`, by the state in which the word ends.
void add_longer(const Terminal& t, const Terminal& u, int32_t classes,
                std::vector<std::vector<uint8_t>>& forbidden) {
  if (!t.alive() || !u.alive()) return;
  if (size_t(t.states) * u.states > kMostPairs) {
    throw BudgetError("lexer", "", "terminals too large to compare for the longest match");
  }
  std::vector<uint8_t> seen(size_t(t.states) * u.states, 0);
  std::vector<std::pair<int32_t, int32_t>> todo;
  const auto grow = [&](int32_t s, int32_t v) {
    for (int32_t c = 0; c < classes; ++c) {
      const int32_t a = t.next[size_t(s) * classes + c], b = u.next[size_t(v) * classes + c];
      if (a < 0 || b < 0 || seen[size_t(a) * u.states + b]) continue;
      seen[size_t(a) * u.states + b] = 1;
      todo.emplace_back(a, b);
    }
  };
  grow(0, 0);
  while (!todo.empty()) {
    const auto [s, v] = todo.back();
    todo.pop_back();
    if (t.accepting[s]) {
      for (int32_t c = 0; c < classes; ++c) {
        const int32_t b = u.next[size_t(v) * classes + c];
        if (b >= 0 && u.accepting[b]) forbidden[s][c] = 1;
      }
    }
    grow(s, v);
  }
}

// A class that no other terminal forbids, that goes on with every word of `between` (also the empty
// one), and after which every terminal may begin.
int32_t find_separator(const Terminals& t, int32_t between) {
  const Terminal& skipped = t.all[between];
  const auto firsts_free = [&](int32_t follow) {
    for (int32_t c = 0; c < t.classes; ++c) {
      for (int32_t i : t.starting[c]) {
        if (i != between && t.forbidden[follow][c]) return false;
      }
    }
    return true;
  };
  const auto separates = [&](int32_t c) {
    for (size_t i = 0; i < t.all.size(); ++i) {
      for (int32_t s = 0; s < t.all[i].states; ++s) {
        if (!t.all[i].accepting[s]) continue;
        if (int32_t(i) != between) {
          if (t.forbidden[t.all[i].follow[s]][c]) return false;
          continue;
        }
        const int32_t to = skipped.next[size_t(s) * t.classes + c];
        if (to < 0 || !skipped.accepting[to] || !firsts_free(skipped.follow[to])) return false;
      }
    }
    return true;
  };
  for (int32_t c = 0; c < t.classes && skipped.nullable(); ++c) {
    if (separates(c)) return c;
  }
  return -1;
}

// The only word of a language, where it has just one.
std::vector<std::string> literal(Langs& langs, Lang lang) {
  if (!langs.alive(lang) || langs.count(lang, 2) != 1) return {};
  return {langs.shortest(lang)};
}

}  // namespace

Terminals compile_terminals(Langs& langs, std::vector<Lang> terminals, Lexer lexer,
                            const std::map<std::string, std::string>& not_before, int32_t between) {
  std::map<std::string, size_t> literals;
  if (lexer == Lexer::kLongest || !not_before.empty()) {
    for (size_t i = 0; i < terminals.size(); ++i) {
      for (const auto& word : literal(langs, terminals[i])) literals.emplace(word, i);
    }
  }
  for (const auto& [word, bytes] : not_before) {
    if (!literals.count(word))
      throw GrammarError("not_before", "", "\"" + word + "\" is no terminal of the grammar");
  }
  if (lexer == Lexer::kLongest) {
    std::vector<uint8_t> is_literal(terminals.size(), 0);
    for (const auto& [word, i] : literals) is_literal[i] = 1;
    for (size_t i = 0; i < terminals.size(); ++i) {
      if (is_literal[i]) continue;
      std::vector<std::string> own;
      for (const auto& [word, at] : literals) {
        if (langs.accepts(langs.steps(terminals[i], word))) own.push_back(word);
      }
      if (!own.empty()) terminals[i] = langs.minus(terminals[i], langs.words(std::move(own)));
    }
  }

  size_t states = 0;
  std::vector<Raw> raws;
  for (Lang lang : terminals) raws.push_back(explore(langs, lang, states));
  // Bytes that are told apart by not_before alone: a row for each.
  for (const auto& [word, bytes] : not_before) {
    Raw row{std::vector<int32_t>(256, -1), {0}};
    for (char b : bytes) row.next[uint8_t(b)] = 0;
    raws.push_back(std::move(row));
  }
  Terminals out;
  find_classes(out, raws);
  raws.resize(terminals.size());

  size_t reach = 0;
  for (const Raw& raw : raws) {
    out.all.push_back(reduce(raw, out));
    const size_t n = size_t(out.all.back().states);
    reach += n * ((n + 63) / 64) * 8;
    if (reach > kMostReach)
      throw BudgetError("terminal states", "", "tables of terminals pass 64 MiB");
    close(out.all.back(), out.classes);
  }

  std::map<std::vector<uint8_t>, int32_t> follows;
  const std::vector<uint8_t> none(out.classes, 0);
  follows.emplace(none, 0);
  out.forbidden.push_back(none);
  std::vector<std::vector<std::vector<uint8_t>>> rows;
  for (const Terminal& t : out.all) rows.emplace_back(t.states, none);
  for (const auto& [word, bytes] : not_before) {
    for (auto& row : rows[literals.at(word)]) {
      for (char b : bytes) row[out.class_of[uint8_t(b)]] = 1;
    }
  }
  for (size_t i = 0; i < out.all.size(); ++i) {
    Terminal& t = out.all[i];
    for (size_t j = 0; lexer == Lexer::kLongest && j < out.all.size(); ++j) {
      add_longer(t, out.all[j], out.classes, rows[i]);
    }
    for (int32_t s = 0; s < t.states; ++s) {
      const auto& row = t.accepting[s] ? rows[i][s] : none;
      const auto [at, fresh] = follows.emplace(row, int32_t(out.forbidden.size()));
      if (fresh) out.forbidden.push_back(row);
      t.follow.push_back(at->second);
    }
  }

  out.starting.resize(out.classes);
  for (int32_t c = 0; c < out.classes; ++c) {
    for (size_t i = 0; i < out.all.size(); ++i) {
      if (out.all[i].alive() && out.all[i].next[c] >= 0) out.starting[c].push_back(int32_t(i));
    }
  }
  if (between >= 0) out.separator = find_separator(out, between);
  return out;
}

}  // namespace tokops::grammar::infill
