#include "infill_witness.h"

#include <algorithm>
#include <map>
#include <queue>
#include <tuple>
#include <unordered_map>

namespace tokops::grammar::infill {
namespace {

constexpr int64_t kFar = INT64_MAX;
constexpr size_t kMostFacts = 1 << 20;
constexpr size_t kMostWays = 8 << 20;
constexpr size_t kMostNodes = 16 << 20;  // of the search for one terminal's words

template <typename T>
using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

// One byte that a terminal reads, by its class: put into a gap, or (gap -1) one of the text.
struct Step {
  int32_t label;
  int32_t gap;
};

// Gaps by place: the gap whose bytes are put in there.
struct Gaps {
  std::vector<int32_t> of_place;
  int32_t count = 0;

  explicit Gaps(const std::vector<Place>& places) : of_place(places.size(), -1) {
    for (size_t p = places.size(); p-- > 0;) {
      const bool inside = places[p].loop || places[p].label == Place::kAny;
      if (!inside) continue;
      of_place[p] = count;
      if (places[p].loop) ++count;  // a gap's last place is its loop
    }
  }
};

// The cheapest words of one terminal from one state on.
class Words {
 public:
  Words(const Search& search, const Text& text, const Gaps& gaps,
        const std::vector<int64_t>& weights, int32_t terminal, int32_t from)
      : search_(search),
        text_(text),
        gaps_(gaps),
        weights_(weights),
        terminal_(terminal),
        from_(from) {}

  // Looks for the cheapest word to each of `targets`.
  void find(const std::vector<int32_t>& targets, Effort& effort) {
    const Terminals& all = search_.grammar().terminals;
    const Terminal& t = all.all[terminal_];
    size_t open = targets.size();
    for (int32_t to : targets) wanted_.emplace(to, Found{});
    if (t.nullable() && wanted_.count(from_)) {
      wanted_[from_] = {0, -1};
      --open;
    }
    MinHeap<std::tuple<int64_t, int32_t, int32_t>> heap;  // cost, place from the end, node
    const auto reach = [&](int64_t cost, int32_t place, int32_t state, int32_t parent, Step step) {
      const int64_t key = int64_t(place) * t.states + state;
      const auto [at, fresh] = best_.emplace(key, cost);
      if (!fresh && at->second <= cost) return;
      at->second = cost;
      if (nodes_.size() >= kMostNodes) throw OutOfEffort{"memory"};
      nodes_.push_back({place, state, parent, step});
      heap.emplace(cost, place, int32_t(nodes_.size()) - 1);
    };
    const auto expand = [&](int64_t cost, int32_t place, int32_t state, int32_t parent,
                            int32_t follow) {
      const Place& p = text_.places()[place];
      const int32_t gap = gaps_.of_place[place];
      for (int32_t c = 0; c < all.classes; ++c) {
        const int32_t to = t.next[size_t(state) * all.classes + c];
        if (to < 0 || all.forbidden[follow][c]) continue;
        effort.spend(1);
        if (p.loop) reach(cost + weight(gap), place, to, parent, {c, gap});
        if (p.label == Place::kAny) reach(cost + weight(gap), place - 1, to, parent, {c, gap});
        if (p.label == c) reach(cost, place - 1, to, parent, {c, -1});
      }
    };
    // With a separator there is one state to a place, and nothing is forbidden at first.
    expand(0, text_.place_of(from_), 0, -1, from_ % text_.follows());
    while (open > 0 && !heap.empty()) {
      const auto [cost, place, index] = heap.top();
      heap.pop();
      const Node node = nodes_[index];
      if (best_[int64_t(place) * t.states + node.state] < cost) continue;
      if (t.accepting[node.state]) {
        const int32_t end = text_.landing(place, t, node.state);
        if (const auto at = wanted_.find(end);
            end >= 0 && at != wanted_.end() && at->second.cost == kFar) {
          at->second = {cost, index};
          --open;
        }
      }
      expand(cost, place, node.state, index, 0);
    }
  }

  int64_t cost(int32_t to) const { return wanted_.at(to).cost; }

  // Adds the bytes of the word to `to`, and a separator before it where the one before forbids its
  // first byte. `follow`: what that one forbids, and then what this one does.
  void append(int32_t to, std::vector<Step>& steps, int32_t& follow) const {
    const int32_t last = wanted_.at(to).node;
    if (last < 0) return;
    const Terminals& all = search_.grammar().terminals;
    std::vector<Step> own;
    for (int32_t i = last; i >= 0; i = nodes_[i].parent) own.push_back(nodes_[i].step);
    if (all.forbidden[follow][own.back().label]) {
      own.push_back({all.separator, gaps_.of_place[text_.place_of(from_)]});
    }
    steps.insert(steps.end(), own.rbegin(), own.rend());
    follow = all.all[terminal_].follow[nodes_[last].state];
  }

 private:
  struct Node {
    int32_t place, state, parent;
    Step step;
  };
  struct Found {
    int64_t cost = kFar;
    int32_t node = -1;
  };
  int64_t weight(int32_t gap) const { return gap < int32_t(weights_.size()) ? weights_[gap] : 1; }

  const Search& search_;
  const Text& text_;
  const Gaps& gaps_;
  const std::vector<int64_t>& weights_;
  int32_t terminal_, from_;
  std::vector<Node> nodes_;
  std::unordered_map<int64_t, int64_t> best_;
  std::unordered_map<int32_t, Found> wanted_;
};

// The facts below a goal, and the cheapest way to derive each.
class Derivations {
 public:
  Derivations(Search& search, const std::vector<int64_t>& weights, Effort& effort)
      : search_(search),
        grammar_(search.grammar()),
        text_(search.text()),
        gaps_(text_.places()),
        weights_(weights),
        effort_(effort) {
    bodies_.resize(grammar_.normal.symbols);
    for (const auto& p : grammar_.normal.productions) bodies_[p.head].push_back(&p.body);
  }

  Completion run() {
    const int32_t from = text_.start(), start = grammar_.normal.start;
    std::vector<int32_t> goals;
    search_.each(start, from, [&](int32_t to) {
      if (text_.final(to)) goals.push_back(fact_of(start, from, to));
    });
    collect();
    price();
    const int32_t goal = *std::min_element(goals.begin(), goals.end(), [&](int32_t a, int32_t b) {
      return facts_[a].cost < facts_[b].cost;
    });
    return write(goal);
  }

 private:
  struct Fact {
    int32_t symbol, from, to;
    int64_t cost = kFar;
    int32_t best = -1;  // way
  };
  struct Way {
    int32_t head, first, second;  // facts; -1: none
    int32_t missing;
  };

  int32_t fact_of(int32_t symbol, int32_t from, int32_t to) {
    const uint64_t n = uint64_t(text_.states());
    const uint64_t key = (uint64_t(symbol) * n + uint64_t(from)) * n + uint64_t(to);
    const auto [at, fresh] = number_.emplace(key, int32_t(facts_.size()));
    if (fresh) {
      if (facts_.size() >= kMostFacts) throw OutOfEffort{"memory"};
      facts_.push_back({symbol, from, to});
    }
    return at->second;
  }

  void way(int32_t head, int32_t first, int32_t second) {
    if (ways_.size() >= kMostWays) throw OutOfEffort{"memory"};
    ways_.push_back({head, first, second, (first >= 0) + (second >= 0)});
  }

  void collect() {
    for (size_t i = 0; i < facts_.size(); ++i) {
      const Fact f = facts_[i];
      if (grammar_.normal.terminal(f.symbol)) continue;
      for (const auto* body : bodies_[f.symbol]) {
        effort_.spend(4);
        if (body->empty()) {
          if (f.from == f.to) way(int32_t(i), -1, -1);
        } else if (body->size() == 1) {
          if (search_.fact((*body)[0], f.from, f.to))
            way(int32_t(i), fact_of((*body)[0], f.from, f.to), -1);
        } else {
          search_.each((*body)[0], f.from, [&](int32_t middle) {
            effort_.spend(1);
            if (!search_.fact((*body)[1], middle, f.to)) return;
            const int32_t first = fact_of((*body)[0], f.from, middle);
            way(int32_t(i), first, fact_of((*body)[1], middle, f.to));
          });
        }
      }
    }
  }

  void price() {
    std::vector<std::vector<int32_t>> used(facts_.size());
    MinHeap<std::pair<int64_t, int32_t>> heap;  // cost, fact
    const auto offer = [&](int32_t fact, int64_t cost, int32_t by) {
      if (cost >= facts_[fact].cost) return;
      facts_[fact].cost = cost;
      facts_[fact].best = by;
      heap.emplace(cost, fact);
    };
    for (size_t i = 0; i < ways_.size(); ++i) {
      if (ways_[i].first >= 0) used[ways_[i].first].push_back(int32_t(i));
      if (ways_[i].second >= 0) used[ways_[i].second].push_back(int32_t(i));
      if (ways_[i].missing == 0) offer(ways_[i].head, 0, int32_t(i));
    }
    std::map<std::pair<int32_t, int32_t>, std::vector<int32_t>> targets;
    for (const Fact& f : facts_) {
      if (grammar_.normal.terminal(f.symbol)) targets[{f.symbol, f.from}].push_back(f.to);
    }
    for (const auto& [key, to] : targets) {
      auto& words = words_.try_emplace(key, search_, text_, gaps_, weights_, key.first, key.second)
                        .first->second;
      words.find(to, effort_);
    }
    for (size_t i = 0; i < facts_.size(); ++i) {
      const Fact& f = facts_[i];
      if (grammar_.normal.terminal(f.symbol)) {
        offer(int32_t(i), words_.at({f.symbol, f.from}).cost(f.to), -1);
      }
    }
    while (!heap.empty()) {
      const auto [cost, fact] = heap.top();
      heap.pop();
      if (cost > facts_[fact].cost) continue;
      for (int32_t w : used[fact]) {
        effort_.spend(1);
        if (--ways_[w].missing > 0) continue;
        int64_t total = facts_[ways_[w].first].cost;
        if (ways_[w].second >= 0) total += facts_[ways_[w].second].cost;
        offer(ways_[w].head, total, w);
      }
    }
  }

  Completion write(int32_t goal) {
    std::vector<Step> steps;
    int32_t follow = 0;
    std::vector<int32_t> stack{goal};
    while (!stack.empty()) {
      effort_.spend(1);
      const Fact& f = facts_[stack.back()];
      stack.pop_back();
      if (grammar_.normal.terminal(f.symbol)) {
        words_.at({f.symbol, f.from}).append(f.to, steps, follow);
        continue;
      }
      const Way& w = ways_[f.best];
      if (w.second >= 0) stack.push_back(w.second);
      if (w.first >= 0) stack.push_back(w.first);
    }
    Completion out;
    out.cost = facts_[goal].cost;
    out.fills.resize(gaps_.count);
    for (const Step& s : steps) {
      if (s.gap >= 0) out.fills[s.gap].push_back(char(grammar_.terminals.spelled[s.label]));
    }
    return out;
  }

  Search& search_;
  const Grammar& grammar_;
  Text& text_;
  Gaps gaps_;
  const std::vector<int64_t>& weights_;
  Effort& effort_;
  std::vector<std::vector<const std::vector<int32_t>*>> bodies_;
  std::vector<Fact> facts_;
  std::vector<Way> ways_;
  std::unordered_map<uint64_t, int32_t> number_;
  std::map<std::pair<int32_t, int32_t>, Words> words_;
};

}  // namespace

Completion shortest_completion(Search& search, const std::vector<int64_t>& weights,
                               Effort& effort) {
  return Derivations(search, weights, effort).run();
}

}  // namespace tokops::grammar::infill
