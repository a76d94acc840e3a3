#include "schema.h"

#include "schema_impl.h"

namespace tokops::grammar {

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
  // Arrays whose items can't all be different are only known when the items are: then anew.
  for (bool again = true; again;) {
    find_possible(order_);
    again = false;
    for (const Goal id : order_)
      for (const auto& s : goals[size_t(id)].value.arrays)
        if (s->unique &&
            placed([&] { return pointer_of(id); }, [&] { return !distinct_possible(*s); }))
          again = impossible.insert(s.get()).second;
  }
  for (const Goal id : order_)
    for (const auto& s : goals[size_t(id)].arrays) {
      if (!s->unique || impossible.count(s.get())) continue;
      for (const auto& at : s->goals)
        for (const Goal x : at) s->watched |= x >= 0 && !always_grows(goals[size_t(x)].value);
      watched |= s->watched;
    }
}

// The least set of possible goals, and what their values are.
void Schema::Impl::find_possible(const std::vector<Goal>& all) {
  for (const Goal id : all) {
    GoalData& g = goals[size_t(id)];
    g.possible = g.listed = false;
    g.value.objects.clear();
    g.value.arrays.clear();
    g.value.few.reset();
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = all.size(); i-- > 0;) {
      GoalData& g = goals[size_t(all[i])];
      if (g.possible) continue;
      const Value& v = g.value;
      bool p = v.null || v.no || v.yes || v.number != kNothing || !v.strings.empty();
      for (const auto& s : g.objects) p = p || shape_possible(*s);
      placed([&] { return pointer_of(all[i]); },
             [&] {
               for (const auto& s : g.arrays) p = p || shape_possible(*s);
             });
      if (p) g.possible = changed = true;
    }
    tick();
  }
  for (const Goal id : all) {
    GoalData& g = goals[size_t(id)];
    g.worked_out = true;
    for (const auto& s : g.objects)
      if (shape_possible(*s)) g.value.objects.push_back(s);
    for (const auto& s : g.arrays)
      if (placed([&] { return pointer_of(id); }, [&] { return shape_possible(*s); }))
        g.value.arrays.push_back(s);
  }
  for (const Goal id : all) {
    for (const auto& s : goals[size_t(id)].objects) finish(*s);
    placed([&] { return pointer_of(id); },
           [&] {
             for (const auto& s : goals[size_t(id)].arrays) finish(*s);
           });
  }
}

Schema::Schema(Langs& langs, const Json& document, SchemaOptions options)
    : impl_(std::make_unique<Impl>()) {
  Impl& s = *impl_;
  s.langs = &langs;
  s.options = std::move(options);
  Node yes{};
  yes.kind = Node::kTrue;
  s.nodes.push_back(yes);
  s.kept.push_back(document);
  const int32_t draft = s.options.draft ? s.options.draft : 2020;
  std::string base = s.options.base;
  s.add_document(s.kept.front(), {base, s.options.place, draft});
  const auto own = s.places.find(&s.kept.front());
  Impl::Place place =
      own != s.places.end() ? own->second : Impl::Place{base, s.options.place, draft};
  s.resources.try_emplace(place.base, Impl::Resource{&s.kept.front(), place});
  s.root = s.read(s.kept.front(), place);
  s.depth = 0;
  s.root_goal = s.goal({s.root});
  s.work_out_all();
  const Value& v = s.goals[size_t(s.root_goal)].value;
  if (!v.null && !v.yes && !v.no && v.number == kNothing && v.strings.empty() &&
      v.objects.empty() && v.arrays.empty())
    throw GrammarError("schema", s.options.place, "no value satisfies the schema");
}
Schema::~Schema() = default;

Goal Schema::root() const { return impl_->root_goal; }
const Value& Schema::value(Goal g) const { return impl_->goals[size_t(g)].value; }
const std::vector<std::string>& Schema::warnings() const { return impl_->warnings; }
const SchemaOptions& Schema::options() const { return impl_->options; }
size_t Schema::goals() const { return impl_->goals.size(); }
bool Schema::watched() const { return impl_->watched; }

std::string canonical(const Json& j) {
  switch (j.kind) {
    case Json::kNull:
      return "null";
    case Json::kFalse:
      return "false";
    case Json::kTrue:
      return "true";
    case Json::kNumber:
      return Decimal::parse(j.text).text();
    case Json::kString:
      return "\"" + j.text;
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
      for (const auto& [k, v] : members)
        s += std::to_string(k.size()) + ":" + k + std::to_string(v.size()) + ":" + v;
      return s + "}";
    }
  }
  return "";
}

}  // namespace tokops::grammar
