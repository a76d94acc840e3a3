// Items of unique arrays: values that the present one leaves to those which must follow.
#include "items.h"
#include "matcher.h"

namespace tokops::grammar {

uint32_t Matcher::without_reserved(uint32_t list) const {
  while (list && list_[list - 1].state == kReserved) list = list_[list - 1].next;
  return list;
}

// Puts before what an array has, for its next item, the values that the items behind that one need
// for themselves. False: there are not enough for them.
bool Matcher::reserve(const Frame& array, uint32_t* list) {
  const ArrayShape& s = array_of(array);
  *list = without_reserved(array.list);
  if (!s.counts.empty()) return true;
  using Values = std::vector<std::string>;
  std::vector<const Values*> later;  // what items may be that must follow, where that is few
  for (int32_t i = array.count + 1; i < s.fewest && int64_t(later.size()) <= kMostListed; ++i) {
    const Goal g = s.goals[size_t(s.position(i))][0];
    if (g < 0) return false;
    const auto& few = grammar_->schema(array.schema).value(g).few;
    if (few) later.push_back(&*few);
    if (!few && i >= int32_t(s.goals.size()) - 1) break;  // nor are those behind it
  }
  if (later.empty()) return true;
  if (unknown_item_) ++unchecked_;
  std::vector<std::string_view> values;
  for (size_t i = 0; i < later.size(); ++i)
    if (i == 0 || later[i] != later[i - 1])
      values.insert(values.end(), later[i]->begin(), later[i]->end());
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  std::erase_if(values, [&](std::string_view v) { return listed(array, v); });
  if (values.size() < later.size()) return false;
  const bool alike =
      std::all_of(later.begin(), later.end(), [&](const Values* x) { return x == later[0]; });
  if (alike && values.size() > later.size()) return true;
  // A value for every item, and from those that are left over what could be left over instead.
  const auto place = [&](const std::string& v) {
    const auto at = std::lower_bound(values.begin(), values.end(), v);
    return at != values.end() && *at == v ? int64_t(at - values.begin()) : -1;
  };
  std::vector<int64_t> owner(values.size(), -1);
  std::vector<uint8_t> tried;
  std::function<bool(int64_t)> settle = [&](int64_t item) {
    for (const std::string& v : *later[size_t(item)]) {
      const int64_t at = place(v);
      if (at < 0 || tried[size_t(at)]) continue;
      tried[size_t(at)] = 1;
      if (owner[size_t(at)] >= 0 && !settle(owner[size_t(at)])) continue;
      owner[size_t(at)] = item;
      return true;
    }
    return false;
  };
  for (size_t i = 0; i < later.size(); ++i) {
    tried.assign(values.size(), 0);
    if (!settle(int64_t(i))) return false;
  }
  std::vector<uint8_t> spare(values.size(), 0);
  std::vector<size_t> todo;
  for (size_t v = 0; v < values.size(); ++v)
    if (owner[v] < 0) spare[v] = 1, todo.push_back(v);
  std::vector<int64_t> value_of(later.size());
  for (size_t v = 0; v < values.size(); ++v)
    if (owner[v] >= 0) value_of[size_t(owner[v])] = int64_t(v);
  while (!todo.empty()) {
    const std::string v(values[todo.back()]);
    todo.pop_back();
    for (size_t i = 0; i < later.size(); ++i) {
      const auto held = size_t(value_of[i]);
      if (spare[held] || std::find(later[i]->begin(), later[i]->end(), v) == later[i]->end())
        continue;
      spare[held] = 1;
      todo.push_back(held);
    }
  }
  for (size_t v = 0; v < values.size(); ++v) {
    if (spare[v]) continue;
    list_.push_back({*list, 0, kReserved, std::string(values[v])});
    *list = uint32_t(list_.size());
  }
  return true;
}

// The same where items are counted, one value of the item that begins after the other: `array` has
// its count already.
void Matcher::reserve_counted(Frame& array, Goal item) {
  const ArrayShape& s = array_of(array);
  const Schema& schema = grammar_->schema(array.schema);
  if (unknown_item_) ++unchecked_;
  ArraySoFar a;
  for (uint32_t i = array.list; i; i = list_[i - 1].next) a.items.push_back(list_[i - 1].text);
  for (size_t k = 0; k < s.counts.size(); ++k) a.counts.push_back(int32_t(words_[array.words + k]));
  std::vector<std::string> values;
  const auto gather = [&](Goal g) {
    if (g < 0 || !schema.value(g).few) return;
    values.insert(values.end(), schema.value(g).few->begin(), schema.value(g).few->end());
  };
  if (schema.value(item).few) {
    gather(item);
  } else {
    for (const std::vector<Goal>& at : s.goals) std::for_each(at.begin(), at.end(), gather);
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
  }
  a.items.emplace_back();
  for (const std::string& v : values) {
    if (listed(array, v)) continue;
    a.items.back() = v;
    Completions completions([&](Goal g) -> const Value& { return schema.value(g); });
    if (completions.array(s, a, [](const std::string*) { return true; })) continue;
    list_.push_back({array.list, 0, kReserved, v});
    array.list = uint32_t(list_.size());
  }
}

}  // namespace tokops::grammar
