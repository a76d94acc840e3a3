// What items of unique arrays can be told apart by: the values of goals that have few.
#include "compact.h"
#include "items.h"
#include "schema_impl.h"

namespace tokops::grammar {

// Whether every object and array of these can always take more, so that one that has begun differs
// from all others in the end.
bool Schema::Impl::always_grows(const Value& v) const {
  return std::all_of(v.objects.begin(), v.objects.end(),
                     [](const auto& s) { return s->open && s->most == kUnbounded; }) &&
         std::all_of(v.arrays.begin(), v.arrays.end(),
                     [](const auto& s) { return s->most == kUnbounded && !s->unique; });
}

std::optional<std::vector<std::string>> Schema::Impl::few_scalars(const Value& v) {
  std::vector<std::string> few;
  if (v.null) few.push_back("null");
  if (v.no) few.push_back("false");
  if (v.yes) few.push_back("true");
  const auto words = [&](Lang l, auto&& put) {
    if (langs->infinite(l)) return false;
    const std::vector<std::string> found = langs->list(l, kMostListed + 1);
    if (int64_t(found.size()) > kMostListed) return false;
    for (const std::string& w : found) put(w);
    return true;
  };
  if (v.number != kNothing) {
    // One spelling of each number: no exponent, no trailing zeros of a fraction, no -0.
    const Lang once = regex(*langs, "^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\\.[0-9]*[1-9])$");
    if (!words(langs->both({v.number, once}),
               [&](const std::string& w) { few.push_back(Decimal::parse(w).text()); }))
      return std::nullopt;
  }
  for (const Strings& s : v.strings) {
    if (langs->infinite(s.lang)) {
      // Where lengths are counted every length is possible.
      const int32_t fewest = std::max(s.shortest, fewest_chars(*langs, s.lang));
      if (s.longest < 0 || s.longest - fewest >= kMostListed) return std::nullopt;
    }
    if (!words(fold(s), [&](const std::string& w) { few.push_back("\"" + w); }))
      return std::nullopt;
  }
  return few;
}

// Works out `value.few` of a goal and of all below it.
void Schema::Impl::list_values(Goal g) {
  if (g < 0 || goals[size_t(g)].listed) return;
  tick();
  goals[size_t(g)].listed = true;  // while it is being asked it has many: values that hold it do
  const Value& v = goals[size_t(g)].value;
  for (const auto& s : v.objects) {
    const auto below = [&](Goal goal, const std::vector<Goal>& goal_if) {
      list_values(goal);
      for (const Goal x : goal_if) list_values(x);
    };
    for (const NamedKey& k : s->names) below(k.goal, k.goal_if);
    for (const KeyClass& k : s->classes) below(k.goal, k.goal_if);
  }
  for (const auto& s : v.arrays)
    for (const auto& here : s->goals)
      for (const Goal x : here) list_values(x);

  std::optional<std::vector<std::string>> few = few_scalars(v);
  if (!few) return;
  std::set<std::string> found(few->begin(), few->end());
  Completions completions([&](Goal x) -> const Value& { return goals[size_t(x)].value; });
  const auto visit = [&](const std::string* value) {
    if (value) found.insert(*value);
    return !value || int64_t(found.size()) > kMostListed;
  };
  for (const auto& s : v.objects) {
    ObjectSoFar none;
    none.seen.resize(s->names.size());
    none.missing = s->required;
    if (completions.object(*s, none, visit)) return;
  }
  for (const auto& s : v.arrays) {
    ArraySoFar none;
    none.counts.resize(s->counts.size());
    if (completions.array(*s, none, visit)) return;
  }
  goals[size_t(g)].value.few.emplace(found.begin(), found.end());
}

}  // namespace tokops::grammar
