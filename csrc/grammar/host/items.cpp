#include "items.h"

#include <algorithm>
#include <charconv>

#include "text.h"

namespace tokops::grammar {

namespace {

constexpr int32_t kMostSteps = 20000;

// One part of a canonical form: a length, a colon, the part. Moves `at` behind it.
std::string_view next_part(std::string_view s, size_t& at) {
  size_t n = 0;
  const auto read = std::from_chars(s.data() + at, s.data() + s.size(), n);
  at = size_t(read.ptr - s.data()) + 1;
  const std::string_view part = s.substr(at, n);
  at += n;
  return part;
}

}  // namespace

BegunText begun_text(std::string_view s, bool ended) {
  BegunText out;
  size_t at = 0;
  const auto space = [&] {
    while (at < s.size() && (s[at] == ' ' || s[at] == '\t' || s[at] == '\n' || s[at] == '\r')) ++at;
  };
  const auto place = [&](std::string value) {
    if (out.levels.empty()) return;
    BegunLevel& l = out.levels.back();
    if (l.object)
      l.members[l.key] = std::move(value);
    else
      l.items.push_back(std::move(value));
    l.key.clear();
  };
  bool key = false;  // one may come
  for (space(); at < s.size(); space()) {
    const size_t first = at;
    const char c = s[at++];
    switch (c) {
      case '{':
      case '[':
        out.levels.push_back({});
        key = out.levels.back().object = c == '{';
        break;
      case '}':
      case ']': {
        const BegunLevel l = std::move(out.levels.back());
        out.levels.pop_back();
        place(l.object ? canonical_object(l.members) : canonical_array(l.items));
        break;
      }
      case ',':
        key = out.levels.back().object;
        break;
      case ':':
        break;
      case '"': {
        while (at < s.size() && s[at] != '"') at += s[at] == '\\' ? 2 : 1;
        if (at >= s.size()) {
          out.leaf = s.substr(first);
          return out;
        }
        const std::string text = decode_text(s.substr(first + 1, at - first - 1));
        ++at;
        if (key)
          out.levels.back().key = text;
        else
          place("\"" + text);
        key = false;
        break;
      }
      default:
        while (at < s.size() && std::string_view(",]} \t\n\r").find(s[at]) == s.npos) ++at;
        if (at >= s.size() && !ended) {
          out.leaf = s.substr(first);
          return out;
        }
        place(canonical_text(s.substr(first, at - first)));
    }
  }
  return out;
}

std::string_view part_of(std::string_view whole, const std::vector<BegunLevel>& levels) {
  for (const BegunLevel& l : levels) {
    if (whole.empty() || whole[0] != (l.object ? '{' : '[')) return {};
    size_t at = 1;
    std::string_view found;
    for (size_t i = 0; at < whole.size(); ++i) {
      const std::string_view part = next_part(whole, at);
      if (!l.object) {
        if (i == l.items.size()) found = part;
        continue;
      }
      const std::string_view value = next_part(whole, at);
      if (part == l.key) found = value;
    }
    whole = found;
  }
  return whole;
}

bool is_like(std::string_view whole, const std::vector<BegunLevel>& levels) {
  for (size_t depth = 0; depth < levels.size(); ++depth) {
    const BegunLevel& l = levels[depth];
    if (whole.empty() || whole[0] != (l.object ? '{' : '[')) return false;
    size_t at = 1, same = 0;
    for (size_t i = 0; at < whole.size(); ++i) {
      const std::string_view part = next_part(whole, at);
      if (!l.object) {
        if (i < l.items.size() && l.items[i] == part) ++same;
        continue;
      }
      const std::string_view value = next_part(whole, at);
      const auto member = l.members.find(std::string(part));
      if (member != l.members.end() && member->second == value) ++same;
    }
    if (same != l.members.size() + l.items.size()) return false;
    if (depth + 1 < levels.size()) whole = part_of(whole, {l});
  }
  return true;
}

bool takes_other_key(const ObjectShape& s, int32_t count, int32_t missing) {
  return s.open && int64_t(count) + missing < s.most;
}

bool Completions::with_name(const ObjectShape& s, const ObjectSoFar& o, int32_t name,
                            const Visit& visit,
                            const std::function<bool(const ObjectSoFar&)>& then) {
  const NamedKey& k = s.names[size_t(name)];
  if (!k.allowed || o.seen[size_t(name)] || k.order < o.order) return false;
  if (int64_t(o.count) + 1 + o.missing - k.required > s.most) return false;
  for (uint32_t mask = 0; mask < 1u << s.some; ++mask) {
    const Goal g = mask ? k.goal_if[mask - 1] : k.goal;
    if ((mask & o.served) || g < 0) continue;
    const auto& few = value_(g).few;
    if (!few) {
      if (visit(nullptr)) return true;
      continue;
    }
    ObjectSoFar next = o;
    next.seen[size_t(name)] = 1;
    next.missing -= k.required;
    next.served |= mask;
    ++next.count;
    for (const std::string& v : *few) {
      next.members[k.name] = v;
      if (then(next)) return true;
    }
  }
  return false;
}

bool Completions::more_names(const ObjectShape& s, const ObjectSoFar& o, int32_t from,
                             const Visit& visit) {
  if (++steps_ > kMostSteps) return visit(nullptr);
  if (from == int32_t(s.names.size())) {
    if (takes_other_key(s, o.count, o.missing) && visit(nullptr)) return true;
    if (o.missing > 0 || o.count < s.fewest || o.served != (1u << s.some) - 1) return false;
    const std::string text = canonical_object(o.members);
    return visit(&text);
  }
  const bool may_skip = !s.names[size_t(from)].required || o.seen[size_t(from)];
  if (may_skip && more_names(s, o, from + 1, visit)) return true;
  return with_name(s, o, from, visit,
                   [&](const ObjectSoFar& next) { return more_names(s, next, from + 1, visit); });
}

bool Completions::object(const ObjectShape& s, const ObjectSoFar& o, const Visit& visit) {
  return more_names(s, o, 0, visit);
}

bool Completions::object_goes_on(const ObjectShape& s, const ObjectSoFar& o, int32_t low,
                                 int32_t high, const Visit& visit) {
  const bool all = low == 0 && high == int32_t(s.names.size());
  if (all && takes_other_key(s, o.count, o.missing) && visit(nullptr)) return true;
  for (int32_t k = low; k < high; ++k)
    if (with_name(s, o, k, visit, [&](ObjectSoFar next) {
          if (next.ordered) next.order = s.names[size_t(k)].order;
          return more_names(s, next, 0, visit);
        }))
      return true;
  return false;
}

bool Completions::array(const ArrayShape& s, const ArraySoFar& a, const Visit& visit) {
  if (++steps_ > kMostSteps) return visit(nullptr);
  const int32_t n = int32_t(a.items.size());
  bool closes = n >= s.fewest;
  for (size_t k = 0; k < s.counts.size(); ++k) closes &= a.counts[k] >= s.counts[k].fewest;
  if (closes) {
    const std::string text = canonical_array(a.items);
    if (visit(&text)) return true;
  }
  if (n >= s.most) return false;
  const int32_t at = s.position(n);
  for (uint32_t sub = 0; sub < s.goals[size_t(at)].size(); ++sub) {
    const Goal g = s.goals[size_t(at)][sub];
    if (g < 0) continue;
    ArraySoFar next = a;
    bool over = false;
    for (size_t k = 0; k < s.counts.size(); ++k) {
      next.counts[k] += int32_t(sub >> k & 1);
      over |= next.counts[k] > s.counts[k].most;
    }
    if (over) continue;
    const auto& few = value_(g).few;
    const bool endless = s.most == kUnbounded && !s.unique && at == int32_t(s.goals.size()) - 1;
    if (!few || (endless && !few->empty())) {
      if (visit(nullptr)) return true;
      continue;
    }
    next.items.emplace_back();
    for (const std::string& v : *few) {
      if (s.unique && std::find(a.items.begin(), a.items.end(), v) != a.items.end()) continue;
      next.items.back() = v;
      if (array(s, next, visit)) return true;
    }
  }
  return false;
}

}  // namespace tokops::grammar
