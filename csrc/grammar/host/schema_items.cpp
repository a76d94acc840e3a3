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

// One spelling of each number: no exponent, no trailing zeros of a fraction, no -0.
Lang Schema::Impl::spelled_once() {
  return regex(*langs, "^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\\.[0-9]*[1-9])$");
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
    if (!words(langs->both({v.number, spelled_once()}),
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

// How many values a goal has at most, where it is less than `cap`.
int64_t Schema::Impl::most_values(Goal g, int64_t cap) {
  const Value& v = goals[size_t(g)].value;
  if (v.few) return std::min<int64_t>(cap, int64_t(v.few->size()));
  if (!v.objects.empty() || !v.arrays.empty()) return cap;
  int64_t n = v.null + v.no + v.yes;
  const auto add = [&](Lang l) {
    n = langs->infinite(l) ? cap : std::min(cap, n + langs->count(l, cap));
  };
  try {
    if (v.number != kNothing) add(langs->both({v.number, spelled_once()}));
    for (const Strings& s : v.strings)
      if (s.shortest || s.longest >= 0)
        n = cap;
      else
        add(s.lang);
  } catch (const BudgetError&) {
    return cap;
  }
  return n;
}

// Whether an array's items can all be different. True where it is hard to say.
bool Schema::Impl::distinct_possible(const ArrayShape& s) {
  constexpr size_t kMostMatched = 1000;
  constexpr int64_t kMostVisits = 1000000;
  for (const auto& at : s.goals)
    for (const Goal g : at) list_values(g);
  const int32_t last = int32_t(s.goals.size()) - 1;
  // Values of the items at a position, or nothing where they are as many as an array needs.
  const auto values_at = [&](int32_t position) -> std::optional<std::set<std::string>> {
    std::set<std::string> all;
    for (const Goal g : s.goals[size_t(position)]) {
      if (g < 0) continue;
      const auto& few = goals[size_t(g)].value.few;
      if (!few) return std::nullopt;
      all.insert(few->begin(), few->end());
    }
    if (int64_t(all.size()) >= s.fewest) return std::nullopt;
    return all;
  };
  if (s.fewest - last > kMostListed) {
    int64_t most = 0;
    for (const Goal g : s.goals[size_t(last)])
      if (g >= 0) most += most_values(g, s.fewest);
    if (most < s.fewest - last) return false;
  }
  // Each position takes a value of its own: Kuhn's algorithm for matchings.
  std::map<std::string, int32_t> ids;
  std::vector<std::vector<int32_t>> choices;
  for (int32_t p = 0; p <= last && p < s.fewest; ++p) {
    const auto values = values_at(p);
    if (!values) continue;
    std::vector<int32_t> chosen;
    for (const std::string& v : *values)
      chosen.push_back(ids.try_emplace(v, int32_t(ids.size())).first->second);
    const size_t times = p == last ? size_t(s.fewest - last) : 1;
    if (times > chosen.size()) return false;
    for (size_t t = 0; t < times && choices.size() < kMostMatched; ++t) choices.push_back(chosen);
  }
  std::vector<int32_t> taken(ids.size(), -1);
  std::vector<uint8_t> seen;
  int64_t visits = 0;
  const std::function<bool(int32_t)> place = [&](int32_t position) {
    for (const int32_t v : choices[size_t(position)]) {
      if (seen[size_t(v)]) continue;
      seen[size_t(v)] = 1;
      if (++visits > kMostVisits || taken[size_t(v)] < 0 || place(taken[size_t(v)])) {
        taken[size_t(v)] = position;
        return true;
      }
    }
    return false;
  };
  for (size_t p = 0; p < choices.size() && visits <= kMostVisits; ++p) {
    seen.assign(ids.size(), 0);
    if (!place(int32_t(p))) return false;
  }
  if (s.counts.empty()) return true;
  bool found = false;
  Completions completions([&](Goal x) -> const Value& { return goals[size_t(x)].value; });
  ArraySoFar none;
  none.counts.resize(s.counts.size());
  completions.array(s, none, [&](const std::string*) { return found = true; });
  return found;
}

}  // namespace tokops::grammar
