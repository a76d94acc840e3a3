// Shapes of objects and arrays, and which of them have values.
#include <cstring>

#include "compact.h"
#include "schema_impl.h"

namespace tokops::grammar {

namespace {

constexpr size_t kMostClasses = 64;     // kinds of keys that patterns tell apart
constexpr int64_t kMostListed = 256;    // keys of a class that are listed by name
constexpr int64_t kMostStates = 1000000;

int32_t clipped(int64_t n) { return int32_t(std::min<int64_t>(n, kUnbounded)); }

}  // namespace

// --- objects ----------------------------------------------------------------------------------------

std::shared_ptr<ObjectShape> Schema::Impl::object_shape(const Conjunction& c) {
  struct Rule {
    const KeySet* keys;
    Lang by_name;     // of kByName
    Literal inner;
  };
  std::vector<Rule> all, some;
  auto shape = std::make_shared<ObjectShape>();
  std::map<int32_t, int32_t> listed;  // name -> order
  int64_t fewest = 0, most = kUnbounded;
  for (const Literal l : c.atoms) {
    const Atom& a = atoms[size_t(nodes[size_t(l >> 1)].atom)];
    const bool no = l & 1;
    switch (a.kind) {
      case Atom::kMember: {
        const auto [at, fresh] = listed.try_emplace(a.name, a.order);
        if (!fresh) at->second = std::min(at->second, a.order);
        break;
      }
      case Atom::kRequired: listed.try_emplace(a.name, INT32_MAX); break;
      case Atom::kMembers: {
        Rule r{&a.keys, kNothing, no ? a.inner ^ 1 : a.inner};
        if (a.keys.kind == KeySet::kByName) r.by_name = strings_of(a.keys.key);
        for (const int32_t n : a.keys.names) listed.try_emplace(n, INT32_MAX);
        (no ? some : all).push_back(r);
        break;
      }
      case Atom::kMinMembers:
        if (no) most = std::min(most, a.count - 1);
        else fewest = std::max(fewest, a.count);
        break;
      case Atom::kMaxMembers:
        if (no) fewest = std::max(fewest, a.count + 1);
        else most = std::min(most, a.count);
        break;
      default: break;
    }
  }
  if (most < 0 || fewest > most) return nullptr;
  if (some.size() > 4) throw BudgetError("patternProperties", "", "more than 4 negated constraints on members meet in one object");

  // Languages of keys, and the kinds of other keys they tell apart.
  std::vector<Lang> patterns;
  const auto note = [&](Lang p) {
    if (std::find(patterns.begin(), patterns.end(), p) == patterns.end()) patterns.push_back(p);
  };
  for (const auto* rules : {&all, &some})
    for (const Rule& r : *rules) {
      if (r.keys->kind == KeySet::kLanguage) note(r.keys->lang);
      else if (r.keys->kind == KeySet::kByName) note(r.by_name);
      else
        for (const Lang p : r.keys->patterns) note(p);
    }
  struct Kind {
    Lang lang;
    uint64_t in;  // bits of patterns
  };
  std::vector<Kind> kinds{{langs->text(), 0}};
  if (patterns.size() > 63) throw BudgetError("patternProperties", "", "more than 63 patterns of keys meet in one object");
  for (size_t p = 0; p < patterns.size(); ++p) {
    std::vector<Kind> next;
    for (const Kind& k : kinds) {
      tick();
      const Lang in = langs->both({k.lang, patterns[p]});
      if (langs->alive(in)) next.push_back({in, k.in | uint64_t(1) << p});
      const Lang out = langs->both({k.lang, langs->complement(patterns[p])});
      if (langs->alive(out)) next.push_back({out, k.in});
    }
    kinds = std::move(next);
    if (kinds.size() > kMostClasses) throw BudgetError("patternProperties", "", "patterns of keys meet in more than " + std::to_string(kMostClasses) + " ways");
  }
  if (!patterns.empty()) {
    std::vector<Kind> endless;
    for (const Kind& k : kinds) {
      if (!langs->infinite(k.lang) && langs->count(k.lang, kMostListed + 1) <= kMostListed)
        for (const std::string& s : langs->list(k.lang, kMostListed + 1)) listed.try_emplace(name(s), INT32_MAX);
      else
        endless.push_back(k);
    }
    kinds = std::move(endless);
  }
  const auto is_in = [&](const Rule& r, const std::string& key, int32_t id) {
    switch (r.keys->kind) {
      case KeySet::kLanguage: return langs->accepts(langs->steps(r.keys->lang, key));
      case KeySet::kByName: return langs->accepts(langs->steps(r.by_name, key));
      default: break;
    }
    if (std::find(r.keys->names.begin(), r.keys->names.end(), id) != r.keys->names.end()) return false;
    for (const Lang p : r.keys->patterns)
      if (langs->accepts(langs->steps(p, key))) return false;
    return true;
  };
  const auto kind_in = [&](const Rule& r, uint64_t in) {
    const auto bit = [&](Lang p) { return in >> (std::find(patterns.begin(), patterns.end(), p) - patterns.begin()) & 1; };
    switch (r.keys->kind) {
      case KeySet::kLanguage: return bool(bit(r.keys->lang));
      case KeySet::kByName: return bool(bit(r.by_name));
      default: break;
    }
    for (const Lang p : r.keys->patterns)
      if (bit(p)) return false;
    return true;
  };
  const auto serving = [&](std::vector<Goal>& goals_if, Goal g, const auto& in) {
    for (uint32_t mask = 1; mask < 1u << some.size(); ++mask) {
      Goal all_of = g;
      for (size_t e = 0; e < some.size() && all_of >= 0; ++e)
        if (mask >> e & 1) all_of = in(some[e]) ? join(all_of, some[e].inner) : -1;
      goals_if.push_back(all_of);
    }
  };
  std::unordered_map<int32_t, std::vector<Literal>> said;
  for (const auto& [n, l] : c.members) said[n].push_back(l);
  const std::set<int32_t> required_names(c.required.begin(), c.required.end()), forbidden(c.forbidden.begin(), c.forbidden.end());
  std::map<std::string, std::pair<int32_t, int32_t>> sorted;
  for (const auto& [n, place] : listed) sorted[names[size_t(n)]] = {n, place};
  for (const auto& [text, at] : sorted) {
    tick();
    NamedKey k;
    k.name = text;
    k.order = at.second;
    k.required = required_names.count(at.first) > 0;
    std::vector<Literal> literals;
    if (const auto s = said.find(at.first); s != said.end()) literals = s->second;
    for (const Rule& r : all)
      if (is_in(r, text, at.first)) literals.push_back(r.inner);
    if (forbidden.count(at.first)) literals = {kFalseLiteral};
    k.goal = goal(std::move(literals));
    if (k.required && goals[size_t(k.goal)].literals == std::vector<Literal>{kFalseLiteral}) return nullptr;
    k.allowed = true;
    serving(k.goal_if, k.goal, [&](const Rule& r) { return is_in(r, text, at.first); });
    shape->required += k.required;
    shape->names.push_back(std::move(k));
  }
  for (const Kind& kind : kinds) {
    KeyClass k;
    k.lang = patterns.empty() ? kind.lang : compact(*langs, kind.lang);
    std::vector<Literal> literals;
    for (const Rule& r : all)
      if (kind_in(r, kind.in)) literals.push_back(r.inner);
    if (std::find(literals.begin(), literals.end(), kFalseLiteral) != literals.end()) continue;
    k.goal = goal(std::move(literals));
    k.allowed = true;
    serving(k.goal_if, k.goal, [&](const Rule& r) { return kind_in(r, kind.in); });
    shape->classes.push_back(std::move(k));
  }
  shape->some = int32_t(some.size());
  shape->fewest = clipped(fewest);
  shape->most = clipped(most);
  if (shape->required > shape->most) return nullptr;
  return shape;
}

bool Schema::Impl::shape_possible(const ObjectShape& s) const {
  const auto ok = [&](Goal g) { return g >= 0 && goals[size_t(g)].possible; };
  int32_t available = 0;
  bool endless = false;
  for (const NamedKey& k : s.names) {
    if (ok(k.goal)) ++available;
    else if (k.required) return false;
  }
  for (const KeyClass& k : s.classes) endless |= ok(k.goal);
  if (!endless && available < s.fewest) return false;
  for (int32_t e = 0; e < s.some; ++e) {
    bool served = false;
    for (const NamedKey& k : s.names) served |= ok(k.goal_if[(size_t(1) << e) - 1]);
    for (const KeyClass& k : s.classes) served |= ok(k.goal_if[(size_t(1) << e) - 1]);
    if (!served) return false;
  }
  if (s.most == 0 && s.some) return false;
  return true;
}

void Schema::Impl::finish(ObjectShape& s) {
  const auto ok = [&](Goal g) { return g >= 0 && goals[size_t(g)].possible; };
  for (NamedKey& k : s.names) {
    k.allowed = ok(k.goal);
    for (Goal& g : k.goal_if)
      if (!ok(g)) g = -1;
  }
  std::vector<KeyClass> left;
  for (KeyClass& k : s.classes) {
    if (!ok(k.goal)) continue;
    for (Goal& g : k.goal_if)
      if (!ok(g)) g = -1;
    left.push_back(std::move(k));
  }
  s.classes = std::move(left);
  s.open = !s.classes.empty();
  if (s.some > 1 && s.most != kUnbounded)
    throw GrammarError("maxProperties", "", "beside several negated constraints on members it is not supported");
  if (s.some > 1 && s.classes.empty())
    throw GrammarError("additionalProperties", "", "several negated constraints on the members of a closed object are not supported");
  // The tree of names. Names are sorted, so that those below a node are neighbours.
  s.tree.assign(1, {});
  s.tree[0].high = int32_t(s.names.size());
  struct Open {
    int32_t node, low, high;
    size_t depth;
  };
  std::vector<Open> todo{{0, 0, int32_t(s.names.size()), 0}};
  while (!todo.empty()) {
    Open o = todo.back();
    todo.pop_back();
    s.tree[size_t(o.node)].low = o.low;
    s.tree[size_t(o.node)].high = o.high;
    int32_t i = o.low;
    if (i < o.high && s.names[size_t(i)].name.size() == o.depth) s.tree[size_t(o.node)].name = i++;
    int32_t last = -1;
    while (i < o.high) {
      const char b = s.names[size_t(i)].name[o.depth];
      int32_t end = i + 1;
      while (end < o.high && s.names[size_t(end)].name[o.depth] == b) ++end;
      const int32_t child = int32_t(s.tree.size());
      s.tree.push_back({});
      s.tree.back().byte = uint8_t(b);
      if (last < 0) s.tree[size_t(o.node)].first_child = child;
      else s.tree[size_t(last)].next = child;
      last = child;
      todo.push_back({child, i, end, o.depth + 1});
      i = end;
    }
  }
}

// --- arrays -----------------------------------------------------------------------------------------

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
        if (no) count(a.inner ^ 1, a.from, 1, kUnbounded);
        else from.push_back({a.from, a.inner});
        break;
      case Atom::kMinItems:
        if (no) most = std::min(most, a.count - 1);
        else fewest = std::max(fewest, a.count);
        break;
      case Atom::kMaxItems:
        if (no) fewest = std::max(fewest, a.count + 1);
        else most = std::min(most, a.count);
        break;
      case Atom::kSomeItems:
        if (no) count(a.inner, 0, 0, a.count - 1);
        else count(a.inner, 0, a.count, kUnbounded);
        break;
      case Atom::kManyItems:
        if (no) count(a.inner, 0, a.count + 1, kUnbounded);
        else count(a.inner, 0, 0, a.count);
        break;
      case Atom::kUnique:
        if (no) throw GrammarError("uniqueItems", "", "negated (items that are not unique) it is not supported");
        shape->unique = true;
        break;
      default: break;
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
  if (counts.size() > 4) throw BudgetError("contains", "", "more than 4 counts of items meet in one array");
  int64_t positions = at.empty() ? 0 : at.rbegin()->first + 1;
  for (const Said& s : from) positions = std::max(positions, s.from);
  for (const Counted& k : counts) positions = std::max(positions, k.from);
  if (positions > 100000) throw BudgetError("prefixItems", "", "more than 100000 positions of an array are told apart");
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
        if (i < counts[k].from) fits &= !serves;
        else if (serves) literals.push_back(counts[k].inner);
        else if (counts[k].most != kUnbounded) literals.push_back(counts[k].inner ^ 1);
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
  const int32_t last = std::max({int32_t(s.goals.size()) - 1, s.fewest, s.most == kUnbounded ? 0 : s.most + 1});
  int32_t state = std::min(index, last);
  for (size_t k = 0; k < s.counts.size(); ++k) {
    const int32_t cap = s.counts[k].most == kUnbounded ? s.counts[k].fewest : s.counts[k].most + 1;
    state = state * (cap + 1) + std::min(counts[k], cap);
  }
  return state;
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
  if (!s.counts.empty()) {
    const int32_t last = std::max({int32_t(s.goals.size()) - 1, s.fewest, s.most == kUnbounded ? 0 : s.most + 1});
    int64_t combinations = 1;
    std::vector<int32_t> caps;
    for (const auto& k : s.counts) {
      caps.push_back(k.most == kUnbounded ? k.fewest : k.most + 1);
      combinations *= caps.back() + 1;
      if (combinations * (last + 1) > kMostStates) throw BudgetError("contains", "", "counts of items have more than " + std::to_string(kMostStates) + " states");
    }
    s.viable.assign(size_t(combinations * (last + 1)), 0);
    std::vector<int32_t> counts(s.counts.size());
    for (int32_t i = last; i >= 0; --i)
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
          const auto& here = s.goals[size_t(s.position(i))];
          for (uint32_t sub = 0; sub < here.size() && !ok; ++sub) {
            if (here[sub] < 0) continue;
            std::vector<int32_t> next = counts;
            for (size_t k = 0; k < counts.size(); ++k) next[k] = std::min(next[k] + int32_t(sub >> k & 1), caps[k]);
            if (std::min(i + 1, last) == i && next == counts) continue;
            ok = s.viable[size_t(array_state(s, i + 1, next.data()))];
          }
        }
        s.viable[size_t(array_state(s, i, counts.data()))] = ok;
      }
  }
  if (s.unique) {
    for (const auto& here : s.goals) {
      std::vector<std::optional<std::vector<std::string>>> by_subset;
      for (const Goal g : here) {
        std::optional<std::vector<std::string>>& few = by_subset.emplace_back(std::vector<std::string>{});
        if (g < 0) continue;
        const GoalData& d = goals[size_t(g)];
        if (s.most <= 1) continue;
        // Arrays and objects that can always grow differ from all others in the end; of closed ones it would have
        // to be known what they can still become.
        for (const auto& o : d.value.objects)
          if (o->classes.empty() || o->most != kUnbounded)
            throw GrammarError("uniqueItems", "", "over objects that hold no other members than those listed it is not supported");
        for (const auto& a : d.value.arrays)
          if (a->most != kUnbounded) throw GrammarError("uniqueItems", "", "over arrays of bounded length it is not supported");
        if (!d.value.arrays.empty() || !d.value.objects.empty()) few.reset();
        if (!few) continue;
        const Value& v = d.value;
        if (v.null) few->push_back("null");
        if (v.no) few->push_back("false");
        if (v.yes) few->push_back("true");
        if (v.number != kNothing) {
          // One spelling of each number: no exponent, no trailing zeros of a fraction, no -0.
          const Lang digits = regex(*langs, "^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\\.[0-9]*[1-9])$");
          const Lang once = langs->both({v.number, digits});
          if (langs->infinite(once) || langs->count(once, kMostListed + 1) > kMostListed) few.reset();
          else
            for (const std::string& t : langs->list(once, kMostListed + 1)) few->push_back(Decimal::parse(t).text());
        }
        for (const Strings& t : v.strings) {
          if (!few) break;
          const Lang all = fold(t);
          if (langs->infinite(all) || langs->count(all, kMostListed + 1) > kMostListed) few.reset();
          else
            for (const std::string& w : langs->list(all, kMostListed + 1)) few->push_back("\"" + w);
        }
      }
      for (auto& few : by_subset)
        if (few) {
          std::sort(few->begin(), few->end());
          few->erase(std::unique(few->begin(), few->end()), few->end());
        }
      s.finite.push_back(std::move(by_subset));
    }
  }
}

bool Schema::Impl::shape_possible(const ArrayShape& s) const {
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
      for (size_t sub = 0; sub < here.size(); ++sub) any |= (sub >> k & 1) && here[sub] >= 0 && goals[size_t(here[sub])].possible;
    if (!any) return false;
  }
  return true;
}

// --- all goals --------------------------------------------------------------------------------------

void Schema::Impl::work_out_all() {
  std::vector<Goal> order_{root_goal};
  std::set<Goal> seen{root_goal};
  const auto visit = [&](Goal g) {
    if (g >= 0 && seen.insert(g).second) order_.push_back(g);
  };
  for (size_t i = 0; i < order_.size(); ++i) {
    const Goal g = order_[i];
    scalar_parts(g);
    part(g, JsonType::kArray);
    part(g, JsonType::kObject);
    for (const auto& s : goals[size_t(g)].objects) {
      for (const NamedKey& k : s->names) {
        visit(k.goal);
        for (const Goal x : k.goal_if) visit(x);
      }
      for (const KeyClass& k : s->classes) {
        visit(k.goal);
        for (const Goal x : k.goal_if) visit(x);
      }
    }
    for (const auto& s : goals[size_t(g)].arrays)
      for (const auto& here : s->goals)
        for (const Goal x : here) visit(x);
    tick();
  }
  // The least set of possible goals.
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = order_.size(); i-- > 0;) {
      GoalData& g = goals[size_t(order_[i])];
      if (g.possible) continue;
      const Value& v = g.value;
      bool p = v.null || v.no || v.yes || v.number != kNothing || !v.strings.empty();
      for (const auto& s : g.objects) p = p || shape_possible(*s);
      for (const auto& s : g.arrays) p = p || shape_possible(*s);
      if (p) g.possible = changed = true;
    }
    tick();
  }
  for (const Goal id : order_) {
    GoalData& g = goals[size_t(id)];
    g.worked_out = true;
    for (const auto& s : g.objects)
      if (shape_possible(*s)) g.value.objects.push_back(s);
    for (const auto& s : g.arrays)
      if (shape_possible(*s)) g.value.arrays.push_back(s);
  }
  for (const Goal id : order_)
    for (const auto& s : goals[size_t(id)].objects) finish(*s);
  for (const Goal id : order_) {
    GoalData& g = goals[size_t(id)];
    std::vector<std::shared_ptr<const ArrayShape>> left;
    for (const auto& s : g.arrays) {
      finish(*s);
      const int32_t none[8] = {};
      if (s->viable.empty() || s->viable[size_t(array_state(*s, 0, none))]) left.push_back(s);
    }
    if (left.size() != g.arrays.size()) {
      std::vector<std::shared_ptr<const ArrayShape>> kept_;
      for (const auto& s : g.value.arrays)
        if (std::find(left.begin(), left.end(), s) != left.end()) kept_.push_back(s);
      g.value.arrays = std::move(kept_);
    }
  }
}

// --- the interface ----------------------------------------------------------------------------------

Schema::Schema(Langs& langs, const Json& document, SchemaOptions options) : impl_(std::make_unique<Impl>()) {
  Impl& s = *impl_;
  s.langs = &langs;
  s.options = std::move(options);
  Node yes{};
  yes.kind = Node::kTrue;
  s.nodes.push_back(yes);
  s.kept.push_back(document);
  const int32_t draft = s.options.draft ? s.options.draft : 2020;
  std::string base = s.options.base;
  s.add_document(s.kept.front(), base, draft);
  const auto own = s.places.find(&s.kept.front());
  Impl::Place place = own != s.places.end() ? own->second : Impl::Place{base, "", draft};
  s.resources.try_emplace(place.base, Impl::Resource{&s.kept.front(), place});
  s.root = s.read(s.kept.front(), place);
  s.depth = 0;
  s.root_goal = s.goal({s.root});
  s.work_out_all();
  const Value& v = s.goals[size_t(s.root_goal)].value;
  if (!v.null && !v.yes && !v.no && v.number == kNothing && v.strings.empty() && v.objects.empty() && v.arrays.empty())
    throw GrammarError("schema", "", "no value satisfies the schema");
}
Schema::~Schema() = default;

Goal Schema::root() const { return impl_->root_goal; }
const Value& Schema::value(Goal g) const { return impl_->goals[size_t(g)].value; }
bool Schema::possible(Goal g) const { return impl_->goals[size_t(g)].possible; }
Goal Schema::with(Goal g, Literal l) { return impl_->join(g, l); }
const std::vector<std::string>& Schema::warnings() const { return impl_->warnings; }
const SchemaOptions& Schema::options() const { return impl_->options; }
size_t Schema::goals() const { return impl_->goals.size(); }

std::string canonical(const Json& j) {
  switch (j.kind) {
    case Json::kNull: return "null";
    case Json::kFalse: return "false";
    case Json::kTrue: return "true";
    case Json::kNumber: return Decimal::parse(j.text).text();
    case Json::kString: return "\"" + j.text;
    case Json::kArray: {
      std::string s = "[";
      for (const Json& x : j.items) {
        const std::string inner = canonical(x);
        s += std::to_string(inner.size()) + ":" + inner;
      }
      return s + "]";
    }
    case Json::kObject: {
      std::map<std::string, std::string> members;
      for (size_t i = 0; i < j.keys.size(); ++i) members[j.keys[i]] = canonical(j.items[i]);
      std::string s = "{";
      for (const auto& [k, v] : members) s += std::to_string(k.size()) + ":" + k + std::to_string(v.size()) + ":" + v;
      return s + "}";
    }
  }
  return "";
}

}  // namespace tokops::grammar
