// Items of unique arrays: whether one that has begun can still become one that isn't there yet.
#include "compact.h"
#include "items.h"
#include "matcher.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr int64_t kMostLeaves = 1000;

}  // namespace

// What a string, number or literal that has begun, written as `text` so far, can still become, in
// canonical form; none where that is more than can be listed, or than the array has items.
std::optional<std::vector<std::string>> Matcher::leaf_values(const Config& c, std::string_view text,
                                                             const Frame& array) {
  Langs& langs = grammar_->langs();
  if (c.escape != 0) return std::nullopt;
  const auto few = [&](Lang l) {
    return !langs.infinite(l) && langs.count(l, kMostLeaves + 1) <= kMostLeaves;
  };
  std::vector<std::string> out;
  if (c.phase == Phase::kString) {
    const Strings& s = grammar_->schema(frames_[c.frame].schema).value(c.id).strings[c.index];
    Lang rest = c.lang;
    if (s.longest >= 0) {
      if (rest == langs.text() && c.count < s.longest) return std::nullopt;
      // Where lengths are counted every length is possible.
      int32_t items = 0;
      for (uint32_t i = array.list; i; i = list_[i - 1].next) ++items;
      const int32_t fewest = std::max(s.shortest - c.count, fewest_chars(langs, rest));
      if (langs.infinite(rest) && s.longest - c.count - fewest > items) return std::nullopt;
      // The code point that has begun is counted, and its bytes are the bound's first.
      std::string_view begun = text;
      size_t part = 0;
      while (part < begun.size() && (uint8_t(begun[begun.size() - 1 - part]) & 0xc0) == 0x80)
        ++part;
      if (part < begun.size() && uint8_t(begun[begun.size() - 1 - part]) >= 0xc0)
        ++part;
      else
        part = 0;
      const Lang bound = langs.repeat(langs.any_char(), 0, s.longest - c.count + (part > 0));
      rest = langs.both({rest, langs.steps(bound, begun.substr(begun.size() - part))});
    }
    if (!few(rest)) return std::nullopt;
    const std::string begun = "\"" + decode_text(text.substr(1));
    for (const std::string& w : langs.list(rest, kMostLeaves)) {
      int32_t chars = c.count;
      for (const char x : w) chars += (uint8_t(x) & 0xc0) != 0x80;
      if (s.shortest == 0 || chars >= s.shortest) out.push_back(begun + w);
    }
    return out;
  }
  const std::string begun(text);
  // An exponent makes many of any other number than 0, and nothing of 0.
  const size_t exponent = c.phase == Phase::kNumber ? begun.find_first_of("eE") : begun.npos;
  const bool zero = begun.find_first_of("123456789") >= exponent;
  if (exponent != begun.npos) {
    if (!zero) return std::nullopt;
    return std::vector<std::string>{canonical_text("0")};
  }
  if (!langs.infinite(c.lang)) {
    if (!few(c.lang)) return std::nullopt;
    for (const std::string& w : langs.list(c.lang, kMostLeaves))
      out.push_back(canonical_text(begun + w));
    return out;
  }
  // Endless spellings may still be of few numbers: 1.0, 1.00. Those in one spelling are counted,
  // and the number that nothing but zeros would make.
  const bool fraction = begun.find('.') != begun.npos;
  const Lang rest = regex(langs, fraction ? "^([0-9]*[1-9])?$" : "^[0-9]*(\\.[0-9]*[1-9])?$");
  const Lang once = langs.both({c.lang, rest});
  if (!few(once)) return std::nullopt;
  const bool grows = langs.alive(langs.both({c.lang, regex(langs, "[eE]")}));
  for (const std::string& w : langs.list(once, kMostLeaves)) {
    const std::string number = begun + w;
    if (grows && number.find_first_of("123456789") != number.npos) return std::nullopt;
    out.push_back(canonical_text(number));
  }
  if (grows) out.push_back(canonical_text("0"));
  if (langs.accepts(langs.step(c.lang, '0'))) out.push_back(canonical_text(begun + "0"));
  return out;
}

bool Matcher::fresh(const Config& c, uint32_t array) {
  const Frame& f = frames_[array];
  if (f.list == 0) return true;
  const auto values = leaf_values(c, std::string_view(bytes_).substr(size_t(f.start)), f);
  return !values || !std::all_of(values->begin(), values->end(),
                                 [&](const std::string& x) { return listed(f, x); });
}

// Whether the object or array can take a member or item, behind the one that is being read, that
// has more values than can be listed.
bool Matcher::takes_many(const Frame& f) const {
  const Schema& schema = grammar_->schema(f.schema);
  const auto many = [&](Goal g) { return g >= 0 && !schema.value(g).few; };
  if (f.kind == Frame::kArray) {
    const ArrayShape& s = array_of(f);
    if (!s.counts.empty() || f.count >= s.most) return false;
    const Goal next = s.goals[size_t(s.position(f.count))][0];
    return many(next) || (next >= 0 && s.most == kUnbounded && !s.unique);
  }
  const ObjectShape& s = object_of(f);
  for (int32_t k = 0; k < int32_t(s.classes.size()); ++k)
    if (class_allowed(f, s, k)) return true;
  for (int32_t k = 0; k < int32_t(s.names.size()); ++k) {
    const NamedKey& key = s.names[size_t(k)];
    if ((many(key.goal) || std::any_of(key.goal_if.begin(), key.goal_if.end(), many)) &&
        name_allowed(f, s, k))
      return true;
  }
  return false;
}

bool Matcher::watches(uint32_t frame, const std::vector<uint32_t>& path) const {
  const Frame& f = frames_[frame];
  return f.kind == Frame::kArray && f.list && !path.empty() && array_of(f).watched;
}

// Whether there is a way up from this frame on which every watched array can get an item that it
// doesn't have, by what `grows` says of the frames of the item, innermost first.
template <class Grows>
bool Matcher::some_way_up(uint32_t frame, std::vector<uint32_t>& path, const Grows& grows) {
  const Frame& f = frames_[frame];
  switch (f.kind) {
    case Frame::kJoin:
      for (uint32_t i = f.list; i; i = list_[i - 1].next)
        if (some_way_up(list_[i - 1].frame, path, grows)) return true;
      return false;
    case Frame::kObject:
    case Frame::kArray: {
      if (watches(frame, path) && !grows(frame)) return false;
      path.push_back(frame);
      const bool found = some_way_up(f.parent, path, grows);
      path.pop_back();
      return found;
    }
    default:
      return true;
  }
}

bool Matcher::free_beside(const Config& c) {
  std::vector<uint32_t> path;
  return some_way_up(c.frame, path, [&](uint32_t) {
    return std::any_of(path.begin(), path.end(),
                       [&](uint32_t f) { return takes_many(frames_[f]); });
  });
}

// Whether the items that a configuration is in, of watched arrays, can still become new ones; with
// `leaf` once the value that is being read is that.
bool Matcher::may_differ(const Config& c, const std::string* leaf) {
  std::vector<uint32_t> path;
  return some_way_up(c.frame, path, [&](uint32_t array) {
    // A key that is being read is a member more, which the innermost frame doesn't count yet.
    const bool key =
        c.phase == Phase::kKey || c.phase == Phase::kOtherKey || c.phase == Phase::kObjectNext;
    for (size_t i = key; i < path.size(); ++i)
      if (takes_many(frames_[path[i]])) return true;
    const Frame& f = frames_[array];
    const BegunText begun =
        begun_text(std::string_view(bytes_).substr(size_t(f.start)), c.phase == Phase::kAfterValue);
    if (begun.levels.size() != path.size()) return true;
    return completes_new(c, f, path, begun, leaf);
  });
}

bool Matcher::completes_new(const Config& c, const Frame& array, const std::vector<uint32_t>& path,
                            const BegunText& begun, const std::string* leaf) {
  const Schema& schema = grammar_->schema(array.schema);
  Completions completions([&](Goal g) -> const Value& { return schema.value(g); });
  const auto level = [&](size_t i) -> const BegunLevel& {
    return begun.levels[begun.levels.size() - 1 - i];
  };
  const auto object = [&](size_t i) {
    const Frame& f = frames_[path[i]];
    const ObjectShape& s = object_of(f);
    ObjectSoFar o;
    o.members = level(i).members;
    o.seen.resize(s.names.size());
    for (size_t k = 0; k < s.names.size(); ++k)
      o.seen[k] = words_[f.words + (k >> 6)] >> (k & 63) & 1;
    o.count = f.count;
    o.missing = f.missing;
    o.served = f.served;
    if (grammar_->schema_order()) o.order = f.order;
    return o;
  };
  const auto items = [&](size_t i) {
    const Frame& f = frames_[path[i]];
    ArraySoFar a;
    a.items = level(i).items;
    for (size_t k = 0; k < array_of(f).counts.size(); ++k)
      a.counts.push_back(int32_t(words_[f.words + k]));
    return a;
  };
  // Puts a value where one is being read at level i, and completes what is around it.
  std::function<bool(size_t, const std::string*)> up = [&](size_t i, const std::string* value) {
    if (!value) return true;
    if (i == path.size()) return !listed(array, *value);
    const Frame& f = frames_[path[i]];
    const auto further = [&](const std::string* whole) { return up(i + 1, whole); };
    if (f.kind == Frame::kObject) {
      ObjectSoFar o = object(i);
      o.members[level(i).key] = *value;
      return completions.object(object_of(f), o, further);
    }
    ArraySoFar a = items(i);
    a.items.push_back(*value);
    return completions.array(array_of(f), a, further);
  };
  const auto any = [&](const std::optional<std::vector<std::string>>& values) {
    return !values || std::any_of(values->begin(), values->end(),
                                  [&](const std::string& v) { return up(0, &v); });
  };
  const Frame& inner = frames_[path[0]];
  const auto further = [&](const std::string* whole) { return up(1, whole); };
  if (leaf) return up(0, leaf);
  switch (c.phase) {
    case Phase::kString:
    case Phase::kNumber:
    case Phase::kLiteral:
      return any(leaf_values(c, begun.leaf, array));
    case Phase::kValue:
    case Phase::kAfterKey:
      return any(schema.value(c.id).few);
    case Phase::kKey: {
      const auto& node = object_of(inner).tree[size_t(c.id)];
      return completions.object_goes_on(object_of(inner), object(0), node.low, node.high, further);
    }
    case Phase::kObjectNext:
      return completions.object_goes_on(object_of(inner), object(0), 0,
                                        int32_t(object_of(inner).names.size()), further);
    case Phase::kObjectOpen:
      return completions.object(object_of(inner), object(0), further);
    case Phase::kArrayOpen:
      return completions.array(array_of(inner), items(0), further);
    case Phase::kAfterValue:
      return inner.kind == Frame::kObject ? completions.object(object_of(inner), object(0), further)
                                          : completions.array(array_of(inner), items(0), further);
    default:
      return true;  // a key of a class: what it may be is more than can be listed
  }
}

// Takes out the configurations, from this index on, that can only repeat an item. Where bytes_
// isn't whole they stay, and are counted.
void Matcher::drop_repeated(size_t first) {
  for (size_t i = first; i < configs_.size();) {
    const Config c = configs_[i];
    if (c.phase == Phase::kDone || c.phase == Phase::kRule || free_beside(c)) {
      ++i;
    } else if (unknown_item_) {
      ++unchecked_;
      ++i;
    } else if (may_differ(c, nullptr)) {
      ++i;
    } else {
      configs_.erase(configs_.begin() + long(i));
    }
  }
}

// Of a string in an item of watched arrays: what it may not be, without what has been read of it.
std::vector<std::string> Matcher::repeating_strings(const Config& c) {
  std::vector<std::string> out;
  std::vector<uint32_t> path;
  std::vector<std::string> tried;
  some_way_up(c.frame, path, [&](uint32_t array) {
    const Frame f = frames_[array];
    const BegunText begun = begun_text(std::string_view(bytes_).substr(size_t(f.start)), false);
    if (begun.levels.size() != path.size() || begun.leaf.empty()) return true;
    const std::string prefix = "\"" + decode_text(begun.leaf.substr(1));
    for (uint32_t i = f.list; i; i = list_[i - 1].next) {
      const std::string value(part_of(list_[i - 1].text, begun.levels));
      if (value.compare(0, prefix.size(), prefix) != 0 ||
          std::find(tried.begin(), tried.end(), value) != tried.end())
        continue;
      tried.push_back(value);
      if (!may_differ(c, &value)) out.push_back(value.substr(prefix.size()));
    }
    return true;
  });
  return out;
}

}  // namespace tokops::grammar
