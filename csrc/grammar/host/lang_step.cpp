// Derivatives, and the rows that keep them. A row has a column per class of bytes that are certain
// to step alike (Owens, Reppy, Turon, 2009, section 4.2), and is filled column by column.
#include <algorithm>

#include "lang_impl.h"

namespace tokops::grammar {

int32_t Langs::Impl::intern_classes(const uint8_t* of) {
  uint64_t h = 0;
  for (int i = 0; i < 256; i += 8) {
    uint64_t w;
    std::memcpy(&w, of + i, 8);
    h = mix(h ^ w);
  }
  auto [first, last] = partition_of.equal_range(h);
  for (; first != last; ++first)
    if (std::memcmp(partitions[first->second]->of, of, 256) == 0) return first->second;

  charge(sizeof(Classes) + 64);
  auto fresh = std::make_unique<Classes>();
  std::memcpy(fresh->of, of, 256);
  fresh->count = 0;
  for (int b = 0; b < 256; ++b)
    if (of[b] == fresh->count) fresh->first[fresh->count++] = uint8_t(b);
  partitions.push_back(std::move(fresh));
  partition_of.emplace(h, int32_t(partitions.size()) - 1);
  return int32_t(partitions.size()) - 1;
}

// Classes are numbered by their lowest bytes, so that equal partitions have equal maps.
int32_t Langs::Impl::classes_of_bytes(const ByteSet& set) {
  uint8_t of[256];
  bool first = set.has(0);
  for (int b = 0; b < 256; ++b) of[b] = set.has(uint8_t(b)) != first;
  return intern_classes(of);
}

int32_t Langs::Impl::meet(int32_t a, int32_t b) {
  if (a == b || b == 0) return a;
  if (a == 0) return b;
  if (a > b) std::swap(a, b);
  uint64_t key = uint64_t(a) << 32 | uint32_t(b);
  if (auto known = meets.find(key); known != meets.end()) return known->second;
  const Classes &x = *partitions[a], &y = *partitions[b];
  std::vector<int16_t> fresh(size_t(x.count) * y.count, -1);
  uint8_t of[256];
  int count = 0;
  for (int i = 0; i < 256; ++i) {
    int16_t& c = fresh[x.of[i] * y.count + y.of[i]];
    if (c < 0) c = int16_t(count++);
    of[i] = uint8_t(c);
  }
  charge(48);
  return meets[key] = intern_classes(of);
}

int32_t Langs::Impl::classes_of(Lang lang) {
  if (partitions.empty()) intern_classes(std::array<uint8_t, 256>{}.data());
  Expression& e = expressions[lang];
  if (e.classes >= 0) return e.classes;
  int32_t result = 0;
  switch (e.kind) {
    case Kind::kNothing:
    case Kind::kEmptyWord:
      break;
    case Kind::kBytes:
      result = classes_of_bytes(sets[e.a]);
      break;
    case Kind::kConcat:
      for (Lang x = lang;; x = at(x).b) {
        if (!is(x, Kind::kConcat)) {
          result = meet(result, classes_of(x));
          break;
        }
        result = meet(result, classes_of(at(x).a));
        if (!accepts(at(x).a)) break;
      }
      break;
    case Kind::kEither:
    case Kind::kBoth:
      for (Lang x : items(lang)) result = meet(result, classes_of(x));
      break;
    case Kind::kNot:
    case Kind::kStar:
    case Kind::kRepeat:
      result = classes_of(e.a);
      break;
    case Kind::kLoop:
      if (e.a < 0) throw GrammarError("loop", "", "a loop is read before it is closed");
      return classes_of(e.a);
    case Kind::kWords: {
      const Tree& tree = *trees[e.a];
      const Tree::Node& node = tree.nodes[e.b];
      int next[256];
      std::fill(next, next + 256, -1);
      for (int i = 0; i < node.count; ++i) next[tree.nodes[node.first + i].byte] = i;
      uint8_t of[256];
      int count = 0, none = -1;
      for (int b = 0; b < 256; ++b) {
        if (next[b] >= 0) {
          of[b] = uint8_t(count++);
        } else {
          if (none < 0) none = count++;
          of[b] = uint8_t(none);
        }
      }
      result = intern_classes(of);
      break;
    }
    case Kind::kAutomaton: {
      const Machine& machine = machines[e.a];
      if (machine.classes >= 0) {
        result = machine.classes;
        break;
      }
      int32_t targets[256], seen[256];
      uint8_t of[256];
      int count = 0;
      for (int b = 0; b < 256; ++b) {
        targets[b] = machine.automaton->step(e.b, uint8_t(b));
        int c = b > 0 && targets[b] == targets[b - 1] ? of[b - 1] : 0;
        while (c < count && seen[c] != targets[b]) ++c;
        if (c == count) seen[count++] = targets[b];
        of[b] = uint8_t(c);
      }
      result = intern_classes(of);
      break;
    }
  }
  return e.classes = result;
}

void Langs::Impl::make_row(Lang lang) {
  const Classes& classes = *partitions[classes_of(lang)];
  auto* targets = static_cast<std::atomic<int32_t>*>(
      allocate(sizeof(std::atomic<int32_t>) * classes.count, alignof(std::atomic<int32_t>)));
  for (int c = 0; c < classes.count; ++c) new (targets + c) std::atomic<int32_t>(-1);
  State& state = langs.states_[lang];
  state.targets = targets;
  state.classes.store(classes.of, std::memory_order_release);
}

Lang Langs::Impl::step(Lang lang, uint8_t b) {
  if (lang == kNothing) return kNothing;
  State& state = langs.states_[lang];
  if (!state.classes.load(std::memory_order_relaxed)) make_row(lang);
  std::atomic<int32_t>& target = state.targets[state.classes.load(std::memory_order_relaxed)[b]];
  Lang next = target.load(std::memory_order_relaxed);
  if (next >= 0) return next;
  next = derive(lang, b);
  if (facts(next) & kDead) next = kNothing;
  target.store(next, std::memory_order_release);
  return next;
}

Lang Langs::Impl::derive(Lang lang, uint8_t b) {
  const Expression& e = at(lang);
  switch (e.kind) {
    case Kind::kNothing:
    case Kind::kEmptyWord:
      return kNothing;
    case Kind::kBytes:
      return sets[e.a].has(b) ? kEmptyWord : kNothing;
    case Kind::kConcat: {
      if (!accepts(e.a)) return concat(step(e.a, b), e.b);
      Items parts;
      for (Lang x = lang;; x = at(x).b) {
        if (!is(x, Kind::kConcat)) {
          parts.push_back(step(x, b));
          break;
        }
        parts.push_back(concat(step(at(x).a, b), at(x).b));
        if (!accepts(at(x).a)) break;
      }
      return either(parts);
    }
    case Kind::kEither: {
      Items parts;
      for (Lang x : items(lang))
        if (Lang next = step(x, b); next != kNothing) parts.push_back(next);
      return either(parts);
    }
    case Kind::kBoth: {
      Items parts;
      for (Lang x : items(lang)) {
        parts.push_back(step(x, b));
        if (parts.back() == kNothing) return kNothing;
      }
      return both(parts);
    }
    case Kind::kNot:
      return complement(step(e.a, b));
    case Kind::kStar:
      return concat(step(e.a, b), lang);
    case Kind::kRepeat: {
      Lang next = step(e.a, b);
      if (next == kNothing) return kNothing;
      return concat(next, repeat(e.a, std::max(e.lo - 1, 0), e.hi < 0 ? -1 : e.hi - 1));
    }
    case Kind::kWords: {
      const Tree& tree = *trees[e.a];
      const Tree::Node& node = tree.nodes[e.b];
      auto first = tree.nodes.begin() + node.first, last = first + node.count;
      auto child = std::lower_bound(first, last, b,
                                    [](const Tree::Node& n, uint8_t x) { return n.byte < x; });
      if (child == last || child->byte != b) return kNothing;
      return tree_node(e.a, int32_t(child - tree.nodes.begin()));
    }
    case Kind::kAutomaton: {
      int32_t next = machines[e.a].automaton->step(e.b, b);
      if (next < 0) return e.hi ? every_string : kNothing;
      return automaton_state(e.a, next, e.hi);
    }
    case Kind::kLoop:
      if (e.a < 0) throw GrammarError("loop", "", "a loop is read before it is closed");
      return step(e.a, b);
  }
  return kNothing;
}

}  // namespace tokops::grammar
