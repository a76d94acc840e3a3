// Leaves that are automata already: sets of words, tables, and automata that are worked out.
#include <algorithm>

#include "lang_impl.h"
#include "regex_tree.h"

namespace tokops::grammar {
namespace {

struct Table : Automaton {
  std::shared_ptr<const Dfa> dfa;
  std::vector<uint8_t> alive, all;  // leads to acceptance; to nothing else
  bool only_ascii = true;

  explicit Table(std::shared_ptr<const Dfa> dfa_) : dfa(std::move(dfa_)) {
    const int32_t states = int32_t(dfa->accepting.size());
    if (dfa->targets.size() != size_t(states) * 256)
      throw GrammarError("dfa", "", "a row of 256 targets is wanted for each state");
    for (int32_t target : dfa->targets)
      if (target < -1 || target >= states)
        throw GrammarError("dfa", "", "a target is out of range");
    alive = leading(states, [&](int32_t s) { return dfa->accepting[s] != 0; });
    auto some_refuse = leading(states, [&](int32_t s) {
      return !dfa->accepting[s] ||
             std::any_of(row(s), row(s) + 256, [](int32_t target) { return target < 0; });
    });
    all.resize(states);
    for (int32_t s = 0; s < states; ++s) {
      all[s] = !some_refuse[s];
      for (int b = 128; b < 256; ++b) only_ascii &= step(s, uint8_t(b)) < 0;
    }
  }
  const int32_t* row(int32_t s) const { return dfa->targets.data() + size_t(s) * 256; }

  // States from which one can come to a state where `goal` holds.
  template <class Goal>
  std::vector<uint8_t> leading(int32_t states, Goal goal) const {
    std::vector<std::vector<int32_t>> back(states);
    std::vector<uint8_t> yes(states);
    std::vector<int32_t> queue;
    for (int32_t s = 0; s < states; ++s) {
      int32_t before = -1;
      for (int b = 0; b < 256; ++b) {
        int32_t target = row(s)[b];
        if (target >= 0 && target != before) back[target].push_back(s);
        before = target;
      }
      if (goal(s)) yes[s] = 1, queue.push_back(s);
    }
    while (!queue.empty()) {
      int32_t s = queue.back();
      queue.pop_back();
      for (int32_t p : back[s])
        if (!yes[p]) yes[p] = 1, queue.push_back(p);
    }
    return yes;
  }

  int32_t step(int32_t state, uint8_t b) const override {
    int32_t target = row(state)[b];
    return target >= 0 && alive[target] ? target : -1;
  }
  bool accepts(int32_t state) const override { return dfa->accepting[state]; }
  bool holds_all(int32_t state) const override { return all[state]; }
  bool ascii() const override { return only_ascii; }
};

}  // namespace

Lang Langs::Impl::automaton_state(int32_t automaton, int32_t state, bool flipped) {
  if (machines[automaton].automaton->holds_all(state)) return flipped ? kNothing : every_string;
  Expression e{.kind = Kind::kAutomaton, .a = automaton, .b = state};
  e.hi = flipped;
  return intern(e);
}

Lang Langs::Impl::automaton(std::shared_ptr<const Automaton> automaton, int32_t state,
                            bool flipped) {
  auto known = machine_of.find(automaton.get());
  if (known != machine_of.end()) return automaton_state(known->second, state, flipped);
  charge(sizeof(Machine) + 128);
  int32_t classes = -1;
  if (const uint8_t* of = automaton->classes()) {
    classes_of(kNothing);  // partition 0 is the one of a single class
    uint8_t renumbered[256];
    int map[256], count = 0;
    std::fill(map, map + 256, -1);
    for (int b = 0; b < 256; ++b) {
      if (map[of[b]] < 0) map[of[b]] = count++;
      renumbered[b] = uint8_t(map[of[b]]);
    }
    classes = intern_classes(renumbered);
  }
  int32_t index = int32_t(machines.size());
  bool ascii = automaton->ascii();
  machine_of.emplace(automaton.get(), index);
  machines.push_back({std::move(automaton), ascii, classes});
  return automaton_state(index, state, flipped);
}

Lang Langs::dfa(std::shared_ptr<const Dfa> dfa, int32_t start) {
  std::lock_guard guard(impl_->lock);
  if (start < 0) return kNothing;
  auto& table = impl_->tables[dfa.get()];
  if (!table) {
    impl_->charge(dfa->targets.size() * sizeof(int32_t) + dfa->accepting.size() * 3);
    table = std::make_shared<Table>(dfa);
  }
  const auto& known = static_cast<const Table&>(*table);
  if (size_t(start) >= known.alive.size())
    throw GrammarError("dfa", "", "the start is out of range");
  if (!known.alive[start]) return kNothing;
  return impl_->automaton(table, start, false);
}

// ---- Sets of words: a tree, whose nodes are languages. Where one word is left, it is a word.

Lang Langs::Impl::tree_node(int32_t tree, int32_t node) {
  const Tree::Node& n = trees[tree]->nodes[node];
  if (n.words == 1)
    return word(std::string_view(trees[tree]->words).substr(size_t(n.first), size_t(n.shortest)));
  Expression e{.kind = Kind::kWords, .a = tree, .b = node};
  return intern(e);
}

Lang Langs::Impl::words(std::vector<std::string>& list) {
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  if (list.empty()) return kNothing;
  if (list.size() == 1) return word(list[0]);

  auto tree = std::make_unique<Tree>();
  size_t total = 0;
  for (const std::string& w : list) total += w.size();
  if (total > INT32_MAX) throw BudgetError("max_bytes", "", "a set of words is larger than 2 GiB");
  std::string key;  // of the set: lengths, then letters
  key.reserve(total + 4 * list.size());
  for (const std::string& w : list) {
    uint32_t n = uint32_t(w.size());
    key.append(reinterpret_cast<const char*>(&n), 4);
  }
  std::vector<int32_t> starts;
  starts.reserve(list.size());
  for (const std::string& w : list) {
    starts.push_back(int32_t(key.size() - 4 * list.size()));
    key += w;
    for (unsigned char c : w) tree->is_ascii &= c < 0x80;
    for (size_t i = 0; tree->is_text && i < w.size();) tree->is_text = next_code_point(w, i) >= 0;
  }
  if (auto known = tree_roots.find(key); known != tree_roots.end()) return known->second;
  charge(2 * key.size() + 128);
  tree->words = key.substr(4 * list.size());

  // Level by level, so that children lie side by side. A node is a span of the sorted words.
  struct Span {
    int32_t first, last, depth;
  };
  std::vector<Span> spans{{0, int32_t(list.size()), 0}};
  auto& nodes = tree->nodes;
  nodes.push_back({});
  for (size_t i = 0; i < nodes.size(); ++i) {
    auto [first, last, depth] = spans[i];
    Tree::Node node = nodes[i];
    node.words = last - first;
    if (node.words == 1) {
      node.first = starts[first] + depth;
      node.shortest = int32_t(list[first].size()) - depth;
      nodes[i] = node;
      continue;
    }
    node.accepts = int32_t(list[first].size()) == depth;
    first += node.accepts;
    node.first = int32_t(nodes.size());
    while (first < last) {
      const char letter = list[first][depth];
      int32_t end = first + 1;
      while (end < last && list[end][depth] == letter) ++end;
      Tree::Node child{};
      child.byte = uint8_t(letter);
      child.text = tree->is_text && !tree->is_ascii ? uint8_t(text_step(node.text, child.byte)) : 0;
      nodes.push_back(child);
      spans.push_back({first, end, depth + 1});
      ++node.count;
      first = end;
    }
    nodes[i] = node;
  }
  for (size_t i = nodes.size(); i-- > 0;) {
    Tree::Node& node = nodes[i];
    if (node.words == 1) continue;
    node.shortest = node.accepts ? 0 : 1 << 30;
    for (int k = 0; k < node.count; ++k)
      node.shortest = std::min(node.shortest, 1 + nodes[node.first + k].shortest);
  }
  charge(nodes.size() * sizeof(Tree::Node));
  trees.push_back(std::move(tree));
  Lang root = tree_node(int32_t(trees.size()) - 1, 0);
  tree_roots.emplace(std::move(key), root);
  return root;
}

}  // namespace tokops::grammar
