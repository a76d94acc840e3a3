// unevaluatedProperties and unevaluatedItems: the ways to satisfy the schemas beside them.
#include "schema_impl.h"
#include "uri.h"

namespace tokops::grammar {

namespace {

constexpr size_t kMostCases = 64;

}  // namespace

// All the ways to satisfy a schema that differ in what they evaluate (unevaluated* apart).
std::vector<Case> Schema::Impl::cases(const Json& j, const Place& outer, bool top, int32_t level) {
  tick();
  if (j.kind == Json::kTrue) return {{kTrueLiteral, {}}};
  if (j.kind == Json::kFalse) return {};
  if (j.kind != Json::kObject)
    malformed("schema", outer.pointer, "a schema is an object or a boolean");
  const auto own = places.find(&j);
  const Place place = own == places.end() ? outer : own->second;
  const char* word = j.find("unevaluatedProperties") ? "unevaluatedProperties" : "unevaluatedItems";
  if (level > 32)
    throw GrammarError(word, place.pointer,
                       "a reference leads back to the schema whose members it evaluates");
  const auto at = [&](const std::string& tail) {
    Place p = place;
    p.pointer += tail;
    return p;
  };
  const auto bounded = [&](const std::vector<Case>& c) {
    if (c.size() > kMostCases)
      throw BudgetError(word, place.pointer,
                        "there are more than " + std::to_string(kMostCases) +
                            " ways to satisfy the schemas beside it");
  };
  tell_unread(j, place);
  const Here held(here, place.pointer);
  if (const Json* v = j.find("$ref"); v && place.draft <= 7) {
    if (v->kind != Json::kString) malformed("$ref", place.pointer, "expected a string");
    const Resource to = resolve(v->text, place, "$ref");
    return cases(*to.json, to.place, false, level + 1);
  }
  Case base{kTrueLiteral, {}};
  std::vector<Literal> simple;
  read_simple(j, place, simple, &base.evaluated);
  base.formula = conjunction(std::move(simple));
  if (!top && place.draft >= 2019) {
    // A schema inside: its own unevaluated* has been taken into account where it is read.
    if (j.find("unevaluatedProperties")) base.evaluated.all_members = true;
    if (j.find("unevaluatedItems")) base.evaluated.all_items = true;
    if (j.find("unevaluatedProperties") || j.find("unevaluatedItems"))
      base.formula = conjunction({base.formula, read(j, outer)});
  }
  std::vector<Case> all{base};
  const auto product = [&](const std::vector<Case>& more) {
    std::vector<Case> out;
    for (const Case& a : all)
      for (const Case& b : more) {
        const Literal f = conjunction({a.formula, b.formula});
        if (f == kFalseLiteral) continue;
        Case c{f, a.evaluated};
        c.evaluated.add(b.evaluated);
        out.push_back(std::move(c));
      }
    bounded(out);
    all = std::move(out);
  };
  const auto plain = [](const std::vector<Case>& c) {
    for (const Case& x : c)
      if (!x.evaluated.nothing()) return false;
    return true;
  };
  for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"})
    if (const Json* v = j.find(keyword); v && reads_reference(keyword, place.draft)) {
      if (v->kind != Json::kString) malformed(keyword, place.pointer, "expected a string");
      if (keyword[1] != 'r' || keyword[3] == 'c') {
        const auto known = dynamic_anchors.find(
            keyword[1] == 'd' ? v->text.substr(v->text.find('#') + 1) : "$recursive");
        if (known != dynamic_anchors.end() && known->second > 1)
          throw GrammarError(keyword, place.pointer,
                             "several schemas have this dynamic anchor: which is meant depends on "
                             "the way there, which is not supported");
      }
      const Resource to = resolve(v->text, place, keyword);
      product(cases(*to.json, to.place, false, level + 1));
    }
  if (const Json* v = j.find("allOf"))
    for (size_t i = 0; i < schemas_in(*v, "allOf", place).size(); ++i)
      product(cases(v->items[i], at("/allOf/" + std::to_string(i)), false, level + 1));
  if (const Json* v = j.find("anyOf")) {
    std::vector<std::vector<Case>> annotated;
    std::vector<Literal> negated, others;
    for (size_t i = 0; i < schemas_in(*v, "anyOf", place).size(); ++i) {
      const Place p = at("/anyOf/" + std::to_string(i));
      std::vector<Case> c = cases(v->items[i], p, false, level + 1);
      if (plain(c)) {
        others.push_back(read(v->items[i], p));
      } else {
        annotated.push_back(std::move(c));
        negated.push_back(read(v->items[i], p) ^ 1);
      }
    }
    std::vector<Case> ways{{kTrueLiteral, {}}};
    std::vector<bool> any{false};
    for (size_t i = 0; i < annotated.size(); ++i) {
      std::vector<Case> next;
      std::vector<bool> next_any;
      for (size_t w = 0; w < ways.size(); ++w) {
        next.push_back({conjunction({ways[w].formula, negated[i]}), ways[w].evaluated});
        next_any.push_back(any[w]);
        for (const Case& c : annotated[i]) {
          Case x{conjunction({ways[w].formula, c.formula}), ways[w].evaluated};
          x.evaluated.add(c.evaluated);
          next.push_back(std::move(x));
          next_any.push_back(true);
        }
      }
      ways = std::move(next);
      any = std::move(next_any);
      bounded(ways);
    }
    for (size_t w = 0; w < ways.size(); ++w)
      if (!any[w]) ways[w].formula = conjunction({ways[w].formula, disjunction(others)});
    product(ways);
  }
  if (const Json* v = j.find("oneOf")) {
    std::vector<Literal> whole;
    for (size_t i = 0; i < schemas_in(*v, "oneOf", place).size(); ++i)
      whole.push_back(read(v->items[i], at("/oneOf/" + std::to_string(i))));
    std::vector<Case> ways;
    for (size_t i = 0; i < v->items.size(); ++i)
      for (const Case& c :
           cases(v->items[i], at("/oneOf/" + std::to_string(i)), false, level + 1)) {
        std::vector<Literal> f{c.formula};
        for (size_t k = 0; k < whole.size(); ++k)
          if (k != i) f.push_back(whole[k] ^ 1);
        ways.push_back({conjunction(std::move(f)), c.evaluated});
      }
    bounded(ways);
    product(ways);
  }
  if (const Json* v = j.find("if"); v && place.draft >= 7) {
    std::vector<Case> ways;
    const std::vector<Case> then = j.find("then")
                                       ? cases(*j.find("then"), at("/then"), false, level + 1)
                                       : std::vector<Case>{{kTrueLiteral, {}}};
    const std::vector<Case> otherwise = j.find("else")
                                            ? cases(*j.find("else"), at("/else"), false, level + 1)
                                            : std::vector<Case>{{kTrueLiteral, {}}};
    for (const Case& c : cases(*v, at("/if"), false, level + 1))
      for (const Case& t : then) {
        Case x{conjunction({c.formula, t.formula}), c.evaluated};
        x.evaluated.add(t.evaluated);
        ways.push_back(std::move(x));
      }
    const Literal no = read(*v, at("/if")) ^ 1;
    for (const Case& e : otherwise) ways.push_back({conjunction({no, e.formula}), e.evaluated});
    product(ways);
  }
  if (const Json* v = j.find("dependentSchemas"); v && place.draft >= 2019) {
    if (v->kind != Json::kObject)
      malformed("dependentSchemas", place.pointer, "expected an object");
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Literal has = required(name(v->keys[i]));
      std::vector<Case> ways{{conjunction({has ^ 1}), {}},
                             {types(uint8_t(63 & ~type_bit(JsonType::kObject))), {}}};
      for (const Case& c :
           cases(v->items[i], at("/dependentSchemas/" + pointer_escaped(v->keys[i])), false,
                 level + 1))
        ways.push_back(
            {conjunction({has, types(type_bit(JsonType::kObject)), c.formula}), c.evaluated});
      product(ways);
    }
  }
  return all;
}

}  // namespace tokops::grammar
