// Items of unique arrays: whether one that has begun can still become one that isn't there yet.
#include "compact.h"
#include "items.h"
#include "matcher.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr int64_t kMostLeaves = 1000;
constexpr size_t kMostNested = 10000;

// Words of a finite language, at most cap, that begin with a code point which an open escape can
// still become.
std::vector<std::string> escaped_words(Langs& langs, Lang lang, uint32_t escape, size_t cap) {
  std::vector<std::string> words;
  const EscapeRange r = escape_range(escape);
  for (uint32_t c = r.low; c <= r.high && words.size() < cap; ++c) {
    if (r.split && c == 0xe000) c = 0x10000;
    char bytes[4];
    const std::string first(bytes, size_t(encode_utf8(c, bytes)));
    const Lang rest = langs.steps(lang, first);
    if (rest == kNothing || !langs.alive(rest)) continue;
    for (const std::string& w : langs.list(rest, int64_t(cap - words.size())))
      words.push_back(first + w);
  }
  return words;
}

}  // namespace

// What a string that has begun, written as `text` so far, can still become, in canonical form; none
// where that is more than `most`.
std::optional<std::vector<std::string>> Matcher::string_values(const Config& c,
                                                               std::string_view text, size_t most) {
  Langs& langs = grammar_->langs();
  const Strings& s = grammar_->schema(frames_[c.frame].schema).value(c.id).strings[c.index];
  Lang rest = c.lang;
  if (s.longest >= 0) {
    if (rest == langs.text() && c.count < s.longest && c.escape == 0) return std::nullopt;
    // Where lengths are counted every length is possible.
    const int32_t fewest = std::max(s.shortest - c.count, fewest_chars(langs, rest));
    if (langs.infinite(rest) && s.longest - c.count - fewest > int64_t(most)) return std::nullopt;
    // The code point that has begun is counted, and its bytes are the bound's first.
    size_t part = 0;
    const auto back = [&](size_t i) { return uint8_t(text[text.size() - 1 - i]); };
    while (part < text.size() && (back(part) & 0xc0) == 0x80) ++part;
    part = part < text.size() && back(part) >= 0xc0 ? part + 1 : 0;
    const Lang bound = langs.repeat(langs.any_char(), 0, s.longest - c.count + (part > 0));
    rest = langs.both({rest, langs.steps(bound, text.substr(text.size() - part))});
  }
  if (langs.infinite(rest)) return std::nullopt;
  const size_t cap = s.shortest <= c.count ? most : size_t(kMostLeaves);
  const std::vector<std::string> words =
      c.escape ? escaped_words(langs, rest, c.escape, cap + 1) : langs.list(rest, int64_t(cap) + 1);
  if (words.size() > cap) return std::nullopt;
  const std::string begun = "\"" + decode_text(text.substr(1));
  std::vector<std::string> out;
  for (const std::string& w : words) {
    int32_t chars = c.count;
    for (const char x : w) chars += (uint8_t(x) & 0xc0) != 0x80;
    if (chars >= s.shortest) out.push_back(begun + w);
  }
  return out;
}

// The same for a number or literal; most is kMostLeaves.
std::optional<std::vector<std::string>> Matcher::scalar_values(const Config& c,
                                                               std::string_view text) {
  Langs& langs = grammar_->langs();
  const std::string begun(text);
  std::vector<std::string> out;
  const auto words = [&](Lang l, auto&& put) {
    if (langs.infinite(l)) return false;
    const std::vector<std::string> found = langs.list(l, kMostLeaves + 1);
    return int64_t(found.size()) <= kMostLeaves && std::all_of(found.begin(), found.end(), put);
  };
  const auto complete = [&](const std::string& w) {
    out.push_back(canonical_text(begun + w));
    return true;
  };
  // An exponent makes many of any other number than 0, and nothing of 0.
  const size_t exponent = c.phase == Phase::kNumber ? begun.find_first_of("eE") : begun.npos;
  if (exponent != begun.npos) {
    if (begun.find_first_of("123456789") < exponent) return std::nullopt;
    return std::vector<std::string>{canonical_text("0")};
  }
  if (!langs.infinite(c.lang)) {
    if (!words(c.lang, complete)) return std::nullopt;
    return out;
  }
  // Endless spellings may still be of few numbers: 1.0, 1.00. Those in one spelling are counted,
  // and the number that nothing but zeros would make.
  const bool fraction = begun.find('.') != begun.npos;
  const Lang rest = regex(langs, fraction ? "^([0-9]*[1-9])?$" : "^[0-9]*(\\.[0-9]*[1-9])?$");
  const bool grows = langs.alive(langs.both({c.lang, regex(langs, "[eE]")}));
  const auto one = [&](const std::string& w) {
    const bool zero = (begun + w).find_first_of("123456789") == begun.npos;
    return (zero || !grows) && complete(w);
  };
  if (!words(langs.both({c.lang, rest}), one)) return std::nullopt;
  if (grows) out.push_back(canonical_text("0"));
  if (langs.accepts(langs.step(c.lang, '0'))) complete("0");
  return out;
}

// Items of an array that a string can become which has begun like this, in canonical form, without
// what has begun.
std::vector<std::string> Matcher::items_like(const Frame& array, std::string_view text) const {
  const std::string prefix = "\"" + decode_text(text.substr(1));
  std::vector<std::string> out;
  for (uint32_t i = array.list; i; i = list_[i - 1].next) {
    const std::string& item = list_[i - 1].text;
    if (item.compare(0, prefix.size(), prefix) == 0) out.push_back(item.substr(prefix.size()));
  }
  return out;
}

bool Matcher::fresh(const Config& c, uint32_t array) {
  const Frame& f = frames_[array];
  if (f.list == 0) return true;
  const std::string_view text = std::string_view(bytes_).substr(size_t(f.start));
  std::optional<std::vector<std::string>> values;
  if (c.phase == Phase::kString) {
    const size_t most = items_like(f, text).size();
    if (most) values = string_values(c, text, most);
  } else {
    values = scalar_values(c, text);
  }
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
      if (path.size() >= kMostNested)
        throw BudgetError("nesting", "",
                          "an item of a unique array is nested more than " +
                              std::to_string(kMostNested) + " deep");
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

// The same of some frame around a configuration, innermost first.
bool Matcher::some_takes_many(const Config& c, const std::vector<uint32_t>& path) const {
  // A key that is being read is a member more, which the innermost frame doesn't count yet.
  const bool key =
      c.phase == Phase::kKey || c.phase == Phase::kOtherKey || c.phase == Phase::kObjectNext;
  return std::any_of(path.begin() + key, path.end(),
                     [&](uint32_t f) { return takes_many(frames_[f]); });
}

bool Matcher::free_beside(const Config& c) {
  std::vector<uint32_t> path;
  return some_way_up(c.frame, path, [&](uint32_t) { return some_takes_many(c, path); });
}

// Whether the items that a configuration is in, of watched arrays, can still become new ones; with
// `leaf` once the value that is being read is that.
bool Matcher::may_differ(const Config& c, const std::string* leaf) {
  std::vector<uint32_t> path;
  return some_way_up(c.frame, path, [&](uint32_t array) {
    if (some_takes_many(c, path)) return true;
    const Frame& f = frames_[array];
    const BegunText begun =
        begun_text(std::string_view(bytes_).substr(size_t(f.start)), c.phase == Phase::kAfterValue);
    if (begun.levels.size() != path.size()) return true;
    return completes_new(c, f, path, begun, leaf);
  });
}

// What stands, in the items that are like the one that has begun, where that is being read; empty
// for an item that has nothing there.
std::vector<std::string> Matcher::values_at(const Frame& array, const BegunText& begun) const {
  std::vector<std::string> out;
  for (uint32_t i = array.list; i; i = list_[i - 1].next)
    if (is_like(list_[i - 1].text, begun.levels))
      out.emplace_back(part_of(list_[i - 1].text, begun.levels));
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
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
    o.ordered = grammar_->schema_order();
    if (o.ordered) o.order = f.order;
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
      return any(string_values(c, begun.leaf, values_at(array, begun).size()));
    case Phase::kNumber:
    case Phase::kLiteral:
      return any(scalar_values(c, begun.leaf));
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

// Of a string in an item of watched arrays: what it is in other items that are like this one,
// without what has been read of it, and whether it may not be that here.
std::vector<std::pair<std::string, bool>> Matcher::strings_like(const Config& c) {
  std::vector<std::pair<std::string, bool>> out;
  std::vector<uint32_t> path;
  some_way_up(c.frame, path, [&](uint32_t array) {
    const BegunText begun =
        begun_text(std::string_view(bytes_).substr(size_t(frames_[array].start)), false);
    if (begun.levels.size() != path.size() || begun.leaf.empty()) return true;
    const std::string prefix = "\"" + decode_text(begun.leaf.substr(1));
    for (const std::string& value : values_at(frames_[array], begun))
      if (value.compare(0, prefix.size(), prefix) == 0)
        out.emplace_back(value.substr(prefix.size()), !may_differ(c, &value));
    return true;
  });
  return out;
}

}  // namespace tokops::grammar
