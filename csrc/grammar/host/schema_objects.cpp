// Shapes of objects.
#include "compact.h"
#include "schema_impl.h"

namespace tokops::grammar {

namespace {

constexpr size_t kMostClasses = 64;   // kinds of keys that patterns tell apart
constexpr int64_t kMostListed = 256;  // keys of a class that are listed by name

}  // namespace

std::shared_ptr<ObjectShape> Schema::Impl::object_shape(const Conjunction& c) {
  struct Rule {
    const KeySet* keys;
    Lang by_name;  // of kByName
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
      case Atom::kRequired:
        listed.try_emplace(a.name, INT32_MAX);
        break;
      case Atom::kMembers: {
        Rule r{&a.keys, kNothing, no ? a.inner ^ 1 : a.inner};
        if (a.keys.kind == KeySet::kByName) r.by_name = strings_of(a.keys.key);
        for (const int32_t n : a.keys.names) listed.try_emplace(n, INT32_MAX);
        (no ? some : all).push_back(r);
        break;
      }
      case Atom::kMinMembers:
        if (no)
          most = std::min(most, a.count - 1);
        else
          fewest = std::max(fewest, a.count);
        break;
      case Atom::kMaxMembers:
        if (no)
          fewest = std::max(fewest, a.count + 1);
        else
          most = std::min(most, a.count);
        break;
      default:
        break;
    }
  }
  if (most < 0 || fewest > most) return nullptr;
  if (some.size() > 4)
    throw BudgetError("patternProperties", "",
                      "more than 4 negated constraints on members meet in one object");

  // Languages of keys, and the kinds of other keys they tell apart.
  std::vector<Lang> patterns;
  const auto note = [&](Lang p) {
    if (std::find(patterns.begin(), patterns.end(), p) == patterns.end()) patterns.push_back(p);
  };
  for (const auto* rules : {&all, &some})
    for (const Rule& r : *rules) {
      if (r.keys->kind == KeySet::kLanguage)
        note(r.keys->lang);
      else if (r.keys->kind == KeySet::kByName)
        note(r.by_name);
      else
        for (const Lang p : r.keys->patterns) note(p);
    }
  struct Kind {
    Lang lang;
    uint64_t in;  // bits of patterns
  };
  std::vector<Kind> kinds{{langs->text(), 0}};
  if (patterns.size() > 63)
    throw BudgetError("patternProperties", "", "more than 63 patterns of keys meet in one object");
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
    if (kinds.size() > kMostClasses)
      throw BudgetError(
          "patternProperties", "",
          "patterns of keys meet in more than " + std::to_string(kMostClasses) + " ways");
  }
  if (!patterns.empty()) {
    std::vector<Kind> endless;
    for (const Kind& k : kinds) {
      if (!langs->infinite(k.lang) && langs->count(k.lang, kMostListed + 1) <= kMostListed)
        for (const std::string& s : langs->list(k.lang, kMostListed + 1))
          listed.try_emplace(name(s), INT32_MAX);
      else
        endless.push_back(k);
    }
    kinds = std::move(endless);
  }
  const auto is_in = [&](const Rule& r, const std::string& key, int32_t id) {
    switch (r.keys->kind) {
      case KeySet::kLanguage:
        return langs->accepts(langs->steps(r.keys->lang, key));
      case KeySet::kByName:
        return langs->accepts(langs->steps(r.by_name, key));
      default:
        break;
    }
    if (std::find(r.keys->names.begin(), r.keys->names.end(), id) != r.keys->names.end())
      return false;
    for (const Lang p : r.keys->patterns)
      if (langs->accepts(langs->steps(p, key))) return false;
    return true;
  };
  const auto kind_in = [&](const Rule& r, uint64_t in) {
    const auto bit = [&](Lang p) {
      return in >> (std::find(patterns.begin(), patterns.end(), p) - patterns.begin()) & 1;
    };
    switch (r.keys->kind) {
      case KeySet::kLanguage:
        return bool(bit(r.keys->lang));
      case KeySet::kByName:
        return bool(bit(r.by_name));
      default:
        break;
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
  const std::set<int32_t> required_names(c.required.begin(), c.required.end()),
      forbidden(c.forbidden.begin(), c.forbidden.end());
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
    if (k.required && goals[size_t(k.goal)].literals == std::vector<Literal>{kFalseLiteral})
      return nullptr;
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

int32_t members_to_serve(const ObjectShape& s, uint32_t open,
                         const std::function<bool(int32_t name)>& may_come,
                         const std::function<bool(Goal)>& possible) {
  constexpr int32_t kNever = INT32_MAX / 2;
  std::vector<int32_t> fewest(size_t(1) << s.some, kNever);  // by what is served
  fewest[0] = 0;
  const auto serve = [&](const std::vector<Goal>& goal_if, int32_t cost) {
    std::vector<int32_t> next = fewest;
    for (uint32_t mask = 1; mask < 1u << s.some; ++mask) {
      const Goal g = goal_if[mask - 1];
      if ((mask & ~open) || g < 0 || !possible(g)) continue;
      for (uint32_t before = 0; before < 1u << s.some; ++before)
        if (!(before & mask))
          next[before | mask] = std::min(next[before | mask], fewest[before] + cost);
    }
    fewest = std::move(next);
  };
  for (int32_t k = 0; k < int32_t(s.names.size()); ++k)
    if (may_come(k)) serve(s.names[size_t(k)].goal_if, !s.names[size_t(k)].required);
  for (const KeyClass& k : s.classes)
    for (int32_t times = 0; times < s.some; ++times) serve(k.goal_if, 1);
  return fewest[open] < kNever ? fewest[open] : -1;
}

bool Schema::Impl::shape_possible(const ObjectShape& s) const {
  const auto ok = [&](Goal g) { return g >= 0 && goals[size_t(g)].possible; };
  int32_t available = 0;
  bool endless = false;
  for (const NamedKey& k : s.names) {
    if (ok(k.goal))
      ++available;
    else if (k.required)
      return false;
  }
  for (const KeyClass& k : s.classes) endless |= ok(k.goal);
  if (!endless && available < s.fewest) return false;
  if (s.some == 0) return true;
  const int32_t extra = members_to_serve(
      s, (1u << s.some) - 1, [&](int32_t k) { return ok(s.names[size_t(k)].goal); }, ok);
  return extra >= 0 && int64_t(s.required) + extra <= s.most;
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
      if (last < 0)
        s.tree[size_t(o.node)].first_child = child;
      else
        s.tree[size_t(last)].next = child;
      last = child;
      todo.push_back({child, i, end, o.depth + 1});
      i = end;
    }
  }
}

}  // namespace tokops::grammar
