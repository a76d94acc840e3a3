// Shapes of arrays.
#include "schema_impl.h"

namespace tokops::grammar {

namespace {

constexpr int64_t kMostStates = 1000000;

}  // namespace

std::shared_ptr<ArrayShape> Schema::Impl::array_shape(const Conjunction& c) {
  struct Said {
    int64_t from;
    Literal inner;
  };
  struct Counted {
    Literal inner;
    int64_t from, fewest, most;
  };
  auto shape = std::make_shared<ArrayShape>();
  std::map<int64_t, std::vector<Literal>> at;
  std::vector<Said> from;
  std::vector<Counted> counts;
  int64_t fewest = 0, most = kUnbounded;
  const auto count = [&](Literal inner, int64_t start, int64_t low, int64_t high) {
    for (Counted& k : counts)
      if (k.inner == inner && k.from == start) {
        k.fewest = std::max(k.fewest, low);
        k.most = std::min(k.most, high);
        return;
      }
    counts.push_back({inner, start, low, high});
  };
  for (const Literal l : c.atoms) {
    const Atom& a = atoms[size_t(nodes[size_t(l >> 1)].atom)];
    const bool no = l & 1;
    switch (a.kind) {
      case Atom::kItem:
        at[a.count].push_back(no ? a.inner ^ 1 : a.inner);
        if (no) fewest = std::max(fewest, a.count + 1);
        break;
      case Atom::kItemsFrom:
        if (no)
          count(a.inner ^ 1, a.from, 1, kUnbounded);
        else
          from.push_back({a.from, a.inner});
        break;
      case Atom::kMinItems:
        if (no)
          most = std::min(most, a.count - 1);
        else
          fewest = std::max(fewest, a.count);
        break;
      case Atom::kMaxItems:
        if (no)
          fewest = std::max(fewest, a.count + 1);
        else
          most = std::min(most, a.count);
        break;
      case Atom::kSomeItems:
        if (no)
          count(a.inner, 0, 0, a.count - 1);
        else
          count(a.inner, 0, a.count, kUnbounded);
        break;
      case Atom::kManyItems:
        if (no)
          count(a.inner, 0, a.count + 1, kUnbounded);
        else
          count(a.inner, 0, 0, a.count);
        break;
      case Atom::kUnique:
        if (no)
          throw GrammarError("uniqueItems", nodes[size_t(l >> 1)].pointer,
                             "negated (items that are not unique) it is not supported");
        shape->unique = true;
        break;
      default:
        break;
    }
  }
  // What every item satisfies is counted by the length.
  for (auto k = counts.begin(); k != counts.end();) {
    bool gone = k->most < k->fewest;
    if (gone) return nullptr;
    if (k->inner == kTrueLiteral) {
      fewest = std::max(fewest, k->from + k->fewest);
      if (k->most != kUnbounded) most = std::min(most, k->from + k->most);
      gone = true;
    } else if (k->inner == kFalseLiteral) {
      if (k->fewest > 0) return nullptr;
      gone = true;
    }
    k = gone ? counts.erase(k) : k + 1;
  }
  if (most < 0 || fewest > most) return nullptr;
  if (counts.size() > 4)
    throw BudgetError("contains", "", "more than 4 counts of items meet in one array");
  int64_t positions = at.empty() ? 0 : at.rbegin()->first + 1;
  for (const Said& s : from) positions = std::max(positions, s.from);
  for (const Counted& k : counts) positions = std::max(positions, k.from);
  if (positions > 100000)
    throw BudgetError("prefixItems", "", "more than 100000 positions of an array are told apart");
  const uint32_t subsets = 1u << counts.size();
  for (int64_t i = 0; i <= positions; ++i) {
    tick();
    std::vector<Literal> base;
    if (const auto f = at.find(i); f != at.end()) base = f->second;
    for (const Said& s : from)
      if (s.from <= i) base.push_back(s.inner);
    std::vector<Goal> goals_here;
    for (uint32_t sub = 0; sub < subsets; ++sub) {
      std::vector<Literal> literals = base;
      bool fits = true;
      for (size_t k = 0; k < counts.size(); ++k) {
        const bool serves = sub >> k & 1;
        if (i < counts[k].from)
          fits &= !serves;
        else if (serves)
          literals.push_back(counts[k].inner);
        else if (counts[k].most != kUnbounded)
          literals.push_back(counts[k].inner ^ 1);
      }
      goals_here.push_back(fits ? goal(std::move(literals)) : -1);
    }
    shape->goals.push_back(std::move(goals_here));
  }
  for (const Counted& k : counts)
    shape->counts.push_back({int32_t(k.from), clipped(k.fewest), clipped(k.most)});
  shape->fewest = clipped(fewest);
  shape->most = clipped(most);
  return shape;
}

int32_t array_state(const ArrayShape& s, int32_t index, const int32_t* counts) {
  const int32_t last =
      std::max({int32_t(s.goals.size()) - 1, s.fewest, s.most == kUnbounded ? 0 : s.most + 1});
  int32_t state = std::min(index, last);
  for (size_t k = 0; k < s.counts.size(); ++k) {
    const int32_t cap = s.counts[k].most == kUnbounded ? s.counts[k].fewest : s.counts[k].most + 1;
    state = state * (cap + 1) + std::min(counts[k], cap);
  }
  return state;
}

// Works out which states of the counts lead to an end; whether the empty array's does.
bool Schema::Impl::counts_possible(const ArrayShape& s, std::vector<uint8_t>& viable) {
  const int32_t last =
      std::max({int32_t(s.goals.size()) - 1, s.fewest, s.most == kUnbounded ? 0 : s.most + 1});
  int64_t combinations = 1;
  std::vector<int32_t> caps;
  for (const auto& k : s.counts) {
    caps.push_back(k.most == kUnbounded ? k.fewest : k.most + 1);
    combinations *= caps.back() + 1;
    if (combinations * (last + 1) > kMostStates)
      throw BudgetError(
          "contains", "",
          "counts of items have more than " + std::to_string(kMostStates) + " states");
  }
  viable.assign(size_t(combinations * (last + 1)), 0);
  std::vector<int32_t> counts(s.counts.size());
  for (int32_t i = last; i >= 0; --i) {
    tick();
    for (int64_t combo = combinations; combo-- > 0;) {
      int64_t rest = combo;
      for (size_t k = counts.size(); k-- > 0;) {
        counts[k] = int32_t(rest % (caps[k] + 1));
        rest /= caps[k] + 1;
      }
      bool ends = i >= s.fewest && i <= s.most, over = i > s.most;
      for (size_t k = 0; k < counts.size(); ++k) {
        ends &= counts[k] >= s.counts[k].fewest;
        over |= counts[k] > s.counts[k].most;
      }
      bool ok = ends && !over;
      if (!ok && !over && i < s.most) {
        const auto& here_ = s.goals[size_t(s.position(i))];
        for (uint32_t sub = 0; sub < here_.size() && !ok; ++sub) {
          if (here_[sub] < 0 || !goals[size_t(here_[sub])].possible) continue;
          std::vector<int32_t> next = counts;
          for (size_t k = 0; k < counts.size(); ++k)
            next[k] = std::min(next[k] + int32_t(sub >> k & 1), caps[k]);
          if (std::min(i + 1, last) == i && next == counts) continue;
          ok = viable[size_t(array_state(s, i + 1, next.data()))];
        }
      }
      viable[size_t(array_state(s, i, counts.data()))] = ok;
    }
  }
  return viable[size_t(array_state(s, 0, std::vector<int32_t>(counts.size()).data()))];
}

void Schema::Impl::finish(ArrayShape& s) {
  for (size_t i = 0; i < s.goals.size(); ++i) {
    bool any = false;
    for (Goal& g : s.goals[i]) {
      if (g >= 0 && !goals[size_t(g)].possible) g = -1;
      any |= g >= 0;
    }
    if (!any) s.most = std::min<int32_t>(s.most, int32_t(i));
  }
  if (!s.counts.empty()) counts_possible(s, s.viable);
  if (s.most <= 1) s.unique = false;
}

bool Schema::Impl::shape_possible(const ArrayShape& s) {
  if (s.fewest > s.most || impossible.count(&s)) return false;
  for (int32_t i = 0; i < s.fewest; ++i) {
    bool any = false;
    for (const Goal g : s.goals[size_t(s.position(i))]) any |= g >= 0 && goals[size_t(g)].possible;
    if (!any) return false;
    if (i >= int32_t(s.goals.size()) - 1) break;
  }
  for (size_t k = 0; k < s.counts.size(); ++k) {
    if (s.counts[k].fewest == 0) continue;
    bool any = false;
    for (const auto& here : s.goals)
      for (size_t sub = 0; sub < here.size(); ++sub)
        any |= (sub >> k & 1) && here[sub] >= 0 && goals[size_t(here[sub])].possible;
    if (!any) return false;
  }
  std::vector<uint8_t> viable;
  return s.counts.empty() || counts_possible(s, viable);
}

}  // namespace tokops::grammar
