// The search for ways to satisfy a goal, and whether there is one.
#include "schema_impl.h"

namespace tokops::grammar {

constexpr int32_t kDeepestGoal = 300;  // goals asked within goals

bool Schema::Impl::add_atom(Conjunction& c, Literal l, JsonType type) {
  if (c.has(l)) return true;
  if (c.has(l ^ 1)) return false;
  c.atoms.push_back(l);
  if (type != JsonType::kObject) return true;
  const Atom& a = atoms[size_t(nodes[size_t(l >> 1)].atom)];
  const bool no = l & 1;
  if (a.kind == Atom::kRequired) {
    if (no ? c.requires_name(a.name) : c.forbids_name(a.name)) return false;
    (no ? c.forbidden : c.required).push_back(a.name);
  } else if (a.kind == Atom::kMember) {
    if (no) {
      if (c.forbids_name(a.name)) return false;
      if (!c.requires_name(a.name)) c.required.push_back(a.name);
    }
    c.members.emplace_back(a.name, no ? a.inner ^ 1 : a.inner);
  }
  return true;
}

Truth Schema::Impl::status(Literal l, const Conjunction& c, JsonType type, int32_t level) {
  const Truth k = known(l, type);
  if (k != Truth::kOpen || level > 8) return k;
  const Node& n = nodes[size_t(l >> 1)];
  const bool no = l & 1;
  const auto flip = [&](Truth t) {
    return t == Truth::kOpen || !no ? t : t == Truth::kTrue ? Truth::kFalse : Truth::kTrue;
  };
  switch (n.kind) {
    case Node::kAtom: {
      if (c.has(l)) return Truth::kTrue;
      if (c.has(l ^ 1)) return Truth::kFalse;
      const Atom& a = atoms[size_t(n.atom)];
      if (a.kind == Atom::kRequired) {
        if (c.requires_name(a.name)) return flip(Truth::kTrue);
        if (c.forbids_name(a.name)) return flip(Truth::kFalse);
      } else if (a.kind == Atom::kMember) {
        if (a.inner == kTrueLiteral || c.forbids_name(a.name)) return flip(Truth::kTrue);
        std::vector<Literal> all = c.of(a.name);
        const bool needed = c.requires_name(a.name);
        if (all.empty() && !needed) return Truth::kOpen;
        all.push_back(a.inner ^ 1);
        if (possible_yet(goal(all), nullptr) == Truth::kFalse) return flip(Truth::kTrue);
        if (needed) {
          all.back() = a.inner;
          if (possible_yet(goal(std::move(all)), nullptr) == Truth::kFalse)
            return flip(Truth::kFalse);
        }
      }
      return Truth::kOpen;
    }
    case Node::kAnd: {
      bool all = true;
      for (const Literal kid : n.kids) {
        const Truth t = status(kid, c, type, level + 1);
        if (t == Truth::kFalse) return flip(Truth::kFalse);
        all &= t == Truth::kTrue;
      }
      return all ? flip(Truth::kTrue) : Truth::kOpen;
    }
    case Node::kLink:
      return n.kids.empty() ? Truth::kOpen : flip(status(n.kids[0], c, type, level + 1));
    default:
      return Truth::kOpen;
  }
}

// Adds to `out` the ways to satisfy all of `todo` beside `c`. False where there is none.
bool Schema::Impl::search(std::vector<Literal> todo, Conjunction c, JsonType type,
                          std::vector<Conjunction>& out) {
  while (true) {
    while (!todo.empty()) {
      tick();
      const Literal l = todo.back();
      todo.pop_back();
      const Node& n = nodes[size_t(l >> 1)];
      const bool no = l & 1;
      const bool listed = n.kind == Node::kAtom && atoms[size_t(n.atom)].kind == Atom::kMember &&
                          type == JsonType::kObject;
      if (!listed) {
        const Truth k = known(l, type);
        if (k == Truth::kFalse) return false;
        if (k == Truth::kTrue) continue;
      }
      switch (n.kind) {
        case Node::kTrue:
          break;
        case Node::kAtom:
          if (!add_atom(c, l, type)) return false;
          break;
        case Node::kAnd:
          if (no)
            c.open.push_back(l);
          else
            todo.insert(todo.end(), n.kids.rbegin(), n.kids.rend());
          break;
        case Node::kLink:
          if (n.kids.empty())
            throw GrammarError("$ref", n.pointer, "the schema refers to itself without end");
          if (c.links.insert(l).second) todo.push_back(n.kids[0] ^ Literal(no));
          break;
        case Node::kOneOf:
          todo.push_back(resolved(l >> 1) ^ Literal(no));
          break;
      }
    }
    // Disjunctions: drop what holds, follow what is left alone, and branch at the shortest.
    size_t best = SIZE_MAX;
    std::vector<Literal> choices;
    bool again = false;
    for (size_t i = 0; i < c.open.size();) {
      const std::vector<Literal>& kids = nodes[size_t(c.open[i] >> 1)].kids;
      std::vector<Literal> left;
      bool holds = false;
      for (const Literal kid : kids) {
        tick();
        const Truth t = status(kid ^ 1, c, type, 0);
        if (t == Truth::kTrue) {
          holds = true;
          break;
        }
        if (t == Truth::kOpen) left.push_back(kid ^ 1);
      }
      if (holds || left.size() <= 1) {
        if (!holds && left.empty()) return false;
        if (!holds) {
          todo.push_back(left[0]);
          again = true;
        }
        c.open.erase(c.open.begin() + long(i));
        if (again) break;
        continue;
      }
      if (best == SIZE_MAX || left.size() < choices.size()) {
        best = i;
        choices = std::move(left);
      }
      ++i;
    }
    if (again) continue;
    if (type == JsonType::kObject)
      for (const int32_t n : c.required)
        if (std::vector<Literal> all = c.of(n);
            !all.empty() && possible_yet(goal(std::move(all)), nullptr) == Truth::kFalse)
          return false;
    if (best == SIZE_MAX) {
      if (int64_t(out.size()) >= options.max_alternatives)
        throw BudgetError(
            "max_alternatives", "",
            "a value has more than " + std::to_string(options.max_alternatives) + " shapes");
      out.push_back(std::move(c));
      return true;
    }
    c.open.erase(c.open.begin() + long(best));
    bool any = false;
    std::vector<Literal>
        others;  // choices that are atoms are kept apart: each way then has its own values
    for (const Literal choice : choices) {
      std::vector<Literal> next = others;
      next.push_back(choice);
      any |= search(std::move(next), c, type, out);
      const Node& n = nodes[size_t(choice >> 1)];
      if (n.kind == Node::kAtom && (atoms[size_t(n.atom)].kind == Atom::kRequired ||
                                    atoms[size_t(n.atom)].kind == Atom::kMinLength ||
                                    atoms[size_t(n.atom)].kind == Atom::kMaxLength))
        others.push_back(choice ^ 1);
    }
    return any;
  }
}

// oneOf without it: each of the schemas and none of those that could hold beside it.
Literal Schema::Impl::resolved(int32_t id) {
  if (nodes[size_t(id)].resolved >= 0) return nodes[size_t(id)].resolved;
  const std::vector<Literal> kids = nodes[size_t(id)].kids;
  std::vector<std::vector<Literal>> ways(kids.size());
  bool certain = true;
  for (size_t i = 0; i < kids.size(); ++i) ways[i].push_back(kids[i]);
  std::vector<uint8_t> kinds(kids.size());
  for (size_t i = 0; i < kids.size(); ++i)
    for (int t = 0; t < kTypes; ++t)
      if (known(kids[i], JsonType(t)) != Truth::kFalse) kinds[i] |= uint8_t(1 << t);
  for (size_t i = 0; i < kids.size(); ++i)
    for (size_t j = i + 1; j < kids.size(); ++j) {
      tick();
      if (!(kinds[i] & kinds[j])) continue;
      const Truth t = possible_yet(goal({kids[i], kids[j]}), &certain);
      if (t == Truth::kFalse) continue;
      ways[i].push_back(kids[j] ^ 1);
      ways[j].push_back(kids[i] ^ 1);
    }
  std::vector<Literal> all;
  for (auto& w : ways) all.push_back(conjunction(std::move(w)));
  const Literal l = disjunction(std::move(all));
  if (certain) nodes[size_t(id)].resolved = l;
  return l;
}

// --- whether there is a value, while compiling
// ------------------------------------------------------

void Schema::Impl::scalar_parts(Goal id) {
  if (goals[size_t(id)].parts & 1) return;
  goals[size_t(id)].parts |= 15;
  placed([&] { return pointer_of(id); }, [&] { read_scalars(id); });
}

void Schema::Impl::read_scalars(Goal id) {
  GoalData& g = goals[size_t(id)];
  std::set<int32_t> open;
  bool values[3] = {true, true, true};
  for (const Literal l : g.literals)
    for (int v = 0; v < 3; ++v)
      if (values[v]) values[v] = point(l, v == 0 ? 0 : 1, v == 2 ? 1 : 0, open) == 1;
  g.value.null = values[0];
  g.value.no = values[1];
  g.value.yes = values[2];
  number_part(g);
  g.value.strings.clear();
  string_part(g);
}

void Schema::Impl::part(Goal id, JsonType type) {
  if (type != JsonType::kArray && type != JsonType::kObject) return scalar_parts(id);
  if (goals[size_t(id)].parts >> int(type) & 1) return;
  placed([&] { return pointer_of(id); }, [&] { find_shapes(id, type); });
}

void Schema::Impl::find_shapes(Goal id, JsonType type) {
  const bool asked = goals[size_t(id)].maybe == -1;
  if (asked) goals[size_t(id)].maybe = 2;
  std::vector<Conjunction> ways;
  const std::vector<Literal>& literals = goals[size_t(id)].literals;
  search(std::vector<Literal>(literals.rbegin(), literals.rend()), {}, type, ways);
  for (const Conjunction& c : ways) {
    if (type == JsonType::kObject) {
      if (auto s = object_shape(c)) goals[size_t(id)].objects.push_back(std::move(s));
    } else if (auto s = array_shape(c)) {
      goals[size_t(id)].arrays.push_back(std::move(s));
    }
  }
  goals[size_t(id)].parts |= type_bit(type);
  if (asked) goals[size_t(id)].maybe = -1;
}

Truth Schema::Impl::possible_yet(Goal id, bool* certain) {
  {
    const GoalData& g = goals[size_t(id)];
    if (g.maybe == 1) return Truth::kTrue;
    if (g.maybe == 0) return Truth::kFalse;
    if (g.maybe == 2) {
      if (certain) *certain = false;
      return Truth::kOpen;
    }
  }
  tick();
  if (++depth > kDeepestGoal) {
    --depth;
    if (certain) *certain = false;
    return Truth::kOpen;
  }
  goals[size_t(id)].maybe = 2;
  Truth answer = Truth::kFalse;
  const auto ask = [&](Goal g) { return possible_yet(g, certain); };
  scalar_parts(id);
  {
    const Value& v = goals[size_t(id)].value;
    if (v.null || v.yes || v.no || v.number != kNothing || !v.strings.empty())
      answer = Truth::kTrue;
  }
  if (answer != Truth::kTrue) {
    part(id, JsonType::kArray);
    const auto shapes = goals[size_t(id)].arrays;
    for (const auto& s : shapes) {
      Truth t = Truth::kTrue;
      for (int32_t i = 0; i < s->fewest && t == Truth::kTrue; ++i) {
        Truth here = Truth::kFalse;
        for (const Goal g : s->goals[size_t(s->position(i))])
          if (g >= 0 && here != Truth::kTrue) {
            const Truth x = ask(g);
            if (x != Truth::kFalse) here = x;
          }
        t = here;
        if (i >= int32_t(s->goals.size()) - 1) break;
      }
      if (t != Truth::kFalse && answer != Truth::kTrue) answer = t;
    }
  }
  if (answer != Truth::kTrue) {
    part(id, JsonType::kObject);
    const auto shapes = goals[size_t(id)].objects;
    for (const auto& s : shapes) {
      Truth t = Truth::kTrue;
      for (const NamedKey& k : s->names)
        if (k.required && t != Truth::kFalse)
          if (const Truth x = ask(k.goal); x != Truth::kTrue) t = x;
      if (t != Truth::kFalse && s->fewest > s->required && s->classes.empty()) {
        int32_t available = 0;
        for (const NamedKey& k : s->names) available += k.required || ask(k.goal) != Truth::kFalse;
        if (available < s->fewest) t = Truth::kFalse;
      }
      for (int32_t e = 0; e < s->some && t != Truth::kFalse; ++e) {
        Truth served = Truth::kFalse;
        const auto consider = [&](Goal g) {
          if (g < 0 || served == Truth::kTrue) return;
          if (const Truth x = ask(g); x != Truth::kFalse) served = x;
        };
        for (const KeyClass& k : s->classes) consider(k.goal_if[(size_t(1) << e) - 1]);
        for (const NamedKey& k : s->names) consider(k.goal_if[(size_t(1) << e) - 1]);
        if (served != Truth::kTrue) t = served;
      }
      if (t != Truth::kFalse && answer != Truth::kTrue) answer = t;
    }
  }
  --depth;
  goals[size_t(id)].maybe = answer == Truth::kTrue ? 1 : answer == Truth::kFalse ? 0 : -1;
  if (answer == Truth::kOpen && certain) *certain = false;
  return answer;
}

}  // namespace tokops::grammar
