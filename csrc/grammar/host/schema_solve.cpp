// From goals to values: what is false of a type is dropped, disjunctions are searched, and what is
// left is a language or a shape.
#include <cstring>

#include "compact.h"
#include "regex_tree.h"
#include "schema_impl.h"

namespace tokops::grammar {

Goal Schema::Impl::goal(std::vector<Literal> literals) {
  std::sort(literals.begin(), literals.end());
  literals.erase(std::unique(literals.begin(), literals.end()), literals.end());
  bool no = false;
  for (size_t i = 0; i + 1 < literals.size(); ++i)
    no |= (literals[i] ^ 1) == literals[i + 1] && !(literals[i] & 1);
  for (const Literal l : literals) no |= l == kFalseLiteral;
  if (no) literals = {kFalseLiteral};
  if (!literals.empty() && literals[0] == kTrueLiteral) literals.erase(literals.begin());
  const auto [at, fresh] = goal_ids.try_emplace(literals, Goal(goals.size()));
  if (fresh) {
    goals.emplace_back();
    goals.back().literals = std::move(literals);
  }
  return at->second;
}

// Where what is asked of a goal was read: some place of those that agree on it.
std::string Schema::Impl::pointer_of(Goal g) const {
  for (const Literal l : goals[size_t(g)].literals)
    if (const std::string& p = nodes[size_t(l >> 1)].pointer; !p.empty()) return p;
  return options.place;
}

Goal Schema::Impl::join(Goal g, Literal l) {
  std::vector<Literal> all = goals[size_t(g)].literals;
  all.push_back(l);
  return goal(std::move(all));
}

// --- truth
// ------------------------------------------------------------------------------------------

// Whether every value of a type satisfies the literal, or none.
Truth Schema::Impl::known(Literal l, JsonType type) {
  Node& n = nodes[size_t(l >> 1)];
  int8_t& memo = n.known[int(type)];
  if (memo == -1) {
    memo = 3;
    int8_t answer = 2;
    switch (n.kind) {
      case Node::kTrue:
        answer = 1;
        break;
      case Node::kAtom: {
        const Atom& a = atoms[size_t(n.atom)];
        if (a.kind == Atom::kTypeIn)
          answer = a.types & type_bit(type) ? 1 : 0;
        else if (a.type != type)
          answer = 1;
        break;
      }
      case Node::kAnd: {
        answer = 1;
        for (const Literal k : n.kids) {
          const Truth t = known(k, type);
          if (t == Truth::kFalse) {
            answer = 0;
            break;
          }
          if (t == Truth::kOpen) answer = 2;
        }
        break;
      }
      case Node::kLink:
        if (!n.kids.empty()) {
          const Truth t = known(n.kids[0], type);
          answer = t == Truth::kFalse ? 0 : t == Truth::kTrue ? 1 : 2;
        }
        break;
      case Node::kOneOf: {
        int yes = 0, open = 0;
        for (const Literal k : n.kids) {
          const Truth t = known(k, type);
          yes += t == Truth::kTrue;
          open += t == Truth::kOpen;
        }
        answer = yes > 1 ? 0 : open ? 2 : yes;
        break;
      }
    }
    nodes[size_t(l >> 1)].known[int(type)] = answer;
    return answer == 2 ? Truth::kOpen : (answer == 1) != bool(l & 1) ? Truth::kTrue : Truth::kFalse;
  }
  if (memo >= 2) return Truth::kOpen;
  return (memo == 1) != bool(l & 1) ? Truth::kTrue : Truth::kFalse;
}

// Whether one value satisfies the literal: 0, 1, or 2 where it can't be said. Values: null; false
// and true; and of numbers with an exponent what is known of them, which is their sign (`which` %
// 3: below, at, above 0) and whether they are integers (`which` / 3).
int Schema::Impl::point(Literal l, int type, int which, std::set<int32_t>& open) {
  const Truth k = known(l, JsonType(type));
  if (k != Truth::kOpen) return k == Truth::kTrue;
  const int32_t id = l >> 1;
  const Node& n = nodes[size_t(id)];
  int answer = 1;
  switch (n.kind) {
    case Node::kTrue:
      break;
    case Node::kAtom: {
      const Atom& a = atoms[size_t(n.atom)];
      if (a.kind == Atom::kBoolIn)
        answer = a.types >> which & 1;
      else if (a.kind == Atom::kInteger)
        answer = which / 3;
      else if (a.kind == Atom::kBound && a.number.digits.empty())
        answer = which % 3 == 1 ? !a.exclusive : (which % 3 == 2) == !a.upper;
      else
        answer = 2;
      break;
    }
    case Node::kAnd:
      for (const Literal kid : n.kids) {
        const int x = point(kid, type, which, open);
        if (x == 0) {
          answer = 0;
          break;
        }
        if (x == 2) answer = 2;
      }
      break;
    case Node::kLink:
      if (!open.insert(id).second)
        throw GrammarError("$ref", n.pointer, "the schema refers to itself without end");
      answer = n.kids.empty() ? 1 : point(n.kids[0], type, which, open);
      open.erase(id);
      break;
    case Node::kOneOf: {
      int yes = 0;
      bool unsure = false;
      for (const Literal kid : n.kids) {
        const int x = point(kid, type, which, open);
        yes += x == 1;
        unsure |= x == 2;
      }
      answer = unsure ? 2 : yes == 1;
      break;
    }
  }
  return answer == 2 ? 2 : answer ^ (l & 1);
}

Lang Schema::Impl::number_language(Literal l, std::set<int32_t>& open) {
  const Truth k = known(l, JsonType::kNumber);
  if (k == Truth::kTrue) return plain_numbers(*langs);
  if (k == Truth::kFalse) return kNothing;
  const int32_t id = l >> 1;
  const Node& n = nodes[size_t(id)];
  const bool no = l & 1;
  Lang yes = kNothing;
  switch (n.kind) {
    case Node::kTrue:
      yes = plain_numbers(*langs);
      break;
    case Node::kAtom: {
      const Atom& a = atoms[size_t(n.atom)];
      if (a.kind == Atom::kInteger)
        yes = plain_integers(*langs);
      else if (a.kind == Atom::kBound) {
        if (no)
          return a.upper ? at_least(*langs, a.number, !a.exclusive)
                         : at_most(*langs, a.number, !a.exclusive);
        yes = a.upper ? at_most(*langs, a.number, a.exclusive)
                      : at_least(*langs, a.number, a.exclusive);
      } else if (a.kind == Atom::kMultiple) {
        yes = multiple_of(*langs, a.number);
      } else {
        std::vector<Lang> all;
        for (const Decimal& d : a.numbers) all.push_back(equal_to(*langs, d));
        yes = langs->either(std::move(all));
      }
      break;
    }
    case Node::kAnd: {
      std::vector<Lang> all;
      for (const Literal kid : n.kids) all.push_back(number_language(no ? kid ^ 1 : kid, open));
      return no ? langs->either(std::move(all)) : langs->both(std::move(all));
    }
    case Node::kLink: {
      if (!open.insert(id).second)
        throw GrammarError("$ref", n.pointer, "the schema refers to itself without end");
      const Lang out =
          n.kids.empty() ? plain_numbers(*langs) : number_language(n.kids[0] ^ Literal(no), open);
      open.erase(id);
      return out;
    }
    case Node::kOneOf: {
      std::vector<Lang> ways;
      for (size_t i = 0; i < n.kids.size(); ++i) {
        std::vector<Lang> all{number_language(n.kids[i], open)};
        if (all[0] == kNothing) continue;
        for (size_t j = 0; j < n.kids.size(); ++j)
          if (j != i) all.push_back(number_language(n.kids[j] ^ 1, open));
        ways.push_back(langs->both(std::move(all)));
      }
      yes = langs->either(std::move(ways));
      break;
    }
  }
  return no ? langs->minus(plain_numbers(*langs), yes) : yes;
}

void Schema::Impl::number_part(GoalData& g) {
  std::vector<Lang> all;
  std::set<int32_t> open;
  for (const Literal l : g.literals) {
    if (known(l, JsonType::kNumber) == Truth::kFalse) return;
    if (known(l, JsonType::kNumber) == Truth::kOpen) all.push_back(number_language(l, open));
  }
  const Lang plain = all.empty() ? plain_numbers(*langs) : langs->both(std::move(all));
  // With an exponent: where only the sign matters.
  int signs = 0;
  for (int s = 0; s < 3; ++s) {
    bool fits = true;
    for (int integer = 0; integer < 2 && fits; ++integer)
      for (const Literal l : g.literals)
        if (point(l, int(JsonType::kNumber), s + 3 * integer, open) != 1) {
          fits = false;
          break;
        }
    signs |= int(fits) << s;
  }
  Lang with_exponent = kNothing;
  switch (signs) {
    case 7:
      with_exponent = exponent_numbers(*langs, Sign::kAny);
      break;
    case 6:
      with_exponent = exponent_numbers(*langs, Sign::kNonNegative);
      break;
    case 3:
      with_exponent = exponent_numbers(*langs, Sign::kNonPositive);
      break;
    case 4:
      with_exponent = exponent_numbers(*langs, Sign::kPositive);
      break;
    case 1:
      with_exponent = exponent_numbers(*langs, Sign::kNegative);
      break;
    case 5:
      with_exponent = langs->either(
          {exponent_numbers(*langs, Sign::kPositive), exponent_numbers(*langs, Sign::kNegative)});
      break;
    default:
      break;
  }
  const Lang sum = with_exponent == kNothing ? plain : langs->either({plain, with_exponent});
  g.value.number = langs->alive(sum) ? sum : kNothing;
}

// --- strings
// ----------------------------------------------------------------------------------------

Lang Schema::Impl::fold(const Strings& s) {
  if (s.shortest == 0 && s.longest < 0) return s.lang;
  const Lang any = langs->repeat(langs->any_char(), s.shortest, s.longest);
  return s.lang == langs->text() ? any : langs->both({s.lang, any});
}

// Keeps of a pattern that repeats one set of characters how often: strings are counted, which needs
// no state for every length.
void Schema::Impl::note_count(Lang lang, const std::string& pattern) {
  const Pattern p = parse_pattern(pattern, {}, "pattern", "");
  const auto kind = [&](int32_t node) { return p.nodes[size_t(node)].kind; };
  const Pattern::Node& all = p.nodes[size_t(p.root)];
  if (all.kind != Pattern::kSequence || all.parts.size() != 3 ||
      kind(all.parts[0]) != Pattern::kBegin || kind(all.parts[1]) != Pattern::kRepeat ||
      kind(all.parts[2]) != Pattern::kEnd)
    return;
  const Pattern::Node& repeat = p.nodes[size_t(all.parts[1])];
  const Pattern::Node& set = p.nodes[size_t(repeat.parts[0])];
  if (set.kind != Pattern::kSet || set.set.empty() || std::max(repeat.lo, repeat.hi) < 2) return;
  counts.emplace(lang, Strings{langs->star(langs->code_points(set.set)), repeat.lo, repeat.hi});
}

void Schema::Impl::string_part(GoalData& g) {
  std::vector<Conjunction> ways;
  Conjunction now;
  search(std::vector<Literal>(g.literals.rbegin(), g.literals.rend()), std::move(now),
         JsonType::kString, ways);
  std::vector<Lang> unbounded;
  for (const Conjunction& c : ways) {
    Strings s{langs->text()};
    std::vector<Lang> all;
    int64_t shortest = 0, longest = -1;
    for (const Literal l : c.atoms) {
      const Atom& a = atoms[size_t(nodes[size_t(l >> 1)].atom)];
      const bool no = l & 1;
      if (const auto k = counts.find(a.lang); a.kind == Atom::kText && !no && k != counts.end()) {
        all.push_back(k->second.lang);
        shortest = std::max<int64_t>(shortest, k->second.shortest);
        const int64_t n = k->second.longest;
        if (n >= 0) longest = longest < 0 ? n : std::min(longest, n);
      } else if (a.kind == Atom::kText) {
        all.push_back(no ? langs->complement(a.lang) : a.lang);
      } else if ((a.kind == Atom::kMinLength) != no) {
        const int64_t n = no ? a.count + 1 : a.count;  // not "at most n": at least n + 1
        shortest = std::max(shortest, n);
      } else {
        const int64_t n = no ? a.count - 1 : a.count;
        longest = longest < 0 ? n : std::min(longest, n);
      }
    }
    if (longest >= 0 && longest < shortest) continue;
    if (!all.empty()) {
      bool negative = true;
      for (const Literal l : c.atoms)
        if (!(l & 1) && atoms[size_t(nodes[size_t(l >> 1)].atom)].kind == Atom::kText)
          negative = false;
      if (negative) all.push_back(langs->text());
      const bool several = all.size() > 1 || negative;
      s.lang = langs->both(std::move(all));
      if (several) s.lang = compact(*langs, s.lang);
    }
    s.shortest = int32_t(shortest);
    s.longest = int32_t(longest);
    if (s.longest == 0) {  // "" or nothing
      s.lang = langs->accepts(s.lang) ? kEmptyWord : kNothing;
      s.longest = -1;
    }
    if (s.shortest || s.longest >= 0) {
      if (!evenly_long(*langs, s.lang)) {
        s.lang = compact(*langs, fold(s), 3000);
        s.shortest = 0;
        s.longest = -1;
      }
    }
    if (s.shortest == 0 && s.longest < 0) {
      unbounded.push_back(s.lang);
    } else {
      const Lengths n = langs->lengths(s.lang);
      if (n.shortest >= 0 && (s.longest < 0 || n.shortest <= s.longest))
        g.value.strings.push_back(s);
    }
  }
  if (!unbounded.empty()) {
    const Lang all = langs->either(std::move(unbounded));
    if (langs->alive(all)) {
      if (all == langs->text()) g.value.strings.clear();
      g.value.strings.insert(g.value.strings.begin(), Strings{all});
    }
  }
}

Lang Schema::Impl::strings_of(Literal l) {
  GoalData& g = goals[size_t(goal({l}))];
  if (!(g.parts >> int(JsonType::kString) & 1)) {
    g.parts |= type_bit(JsonType::kString);
    string_part(g);
  }
  std::vector<Lang> all;
  for (const Strings& s : g.value.strings) all.push_back(fold(s));
  return langs->either(std::move(all));
}

}  // namespace tokops::grammar
