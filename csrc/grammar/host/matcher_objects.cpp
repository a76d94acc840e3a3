// Objects: which keys may come, and when an object can be ended.
#include "matcher.h"
#include "text.h"

namespace tokops::grammar {

bool Matcher::object_closes(const Frame& f) const {
  const ObjectShape& s = object_of(f);
  return f.missing == 0 && f.count >= s.fewest && f.served == (1u << s.some) - 1;
}

// Whether the object can be ended once one more member is there: the name with this index (or
// another key, -1), and with it these of `some` served.
bool Matcher::members_can_end(const Frame& f, const ObjectShape& s, int32_t name,
                              uint32_t served) const {
  const int32_t count = f.count + 1,
                missing = f.missing - (name >= 0 && s.names[size_t(name)].required);
  const uint32_t open = ((1u << s.some) - 1) & ~served;
  if (count > s.most) return false;
  if (open == 0 && s.most == kUnbounded && (s.open || s.fewest <= count + missing)) return true;
  const int32_t order = !grammar_->schema_order() ? -1
                        : name >= 0               ? s.names[size_t(name)].order
                                                  : INT32_MAX;
  const auto unseen = [&](int32_t k) {
    return k != name && s.names[size_t(k)].allowed && s.names[size_t(k)].order >= order &&
           !(words_[f.words + size_t(k >> 6)] >> (k & 63) & 1);
  };
  int32_t extra = 0;
  if (open) extra = members_to_serve(s, open, unseen, [](Goal g) { return g >= 0; });
  if (extra < 0) return false;
  if (int64_t(count) + missing + extra > s.most) return false;
  if (s.open || s.fewest <= count) return true;
  int32_t left = 0;
  for (int32_t k = 0; k < int32_t(s.names.size()); ++k) left += unseen(k);
  return count + left >= s.fewest;
}

bool Matcher::name_allowed(const Frame& f, const ObjectShape& s, int32_t name) const {
  const NamedKey& k = s.names[size_t(name)];
  if (!k.allowed || (words_[f.words + size_t(name >> 6)] >> (name & 63) & 1)) return false;
  if (grammar_->schema_order()) {
    if (k.order < f.order) return false;
    for (size_t j = 0; j < s.names.size(); ++j)
      if (s.names[j].required && s.names[j].order < k.order &&
          !(words_[f.words + (j >> 6)] >> (j & 63) & 1))
        return false;
  }
  if (members_can_end(f, s, name, f.served)) return true;
  for (uint32_t mask = 1; mask < 1u << s.some; ++mask)
    if (k.goal_if[mask - 1] >= 0 && members_can_end(f, s, name, f.served | mask)) return true;
  return false;
}

bool Matcher::any_allowed(const Frame& f, const ObjectShape& s, int32_t low, int32_t high) const {
  for (int32_t k = low; k < high; ++k)
    if (name_allowed(f, s, k)) return true;
  return false;
}

bool Matcher::class_allowed(const Frame& f, const ObjectShape& s, int32_t index) const {
  if (grammar_->schema_order())
    for (size_t j = 0; j < s.names.size(); ++j)
      if (s.names[j].required && s.names[j].order != INT32_MAX &&
          !(words_[f.words + (j >> 6)] >> (j & 63) & 1))
        return false;
  if (members_can_end(f, s, -1, f.served)) return true;
  for (uint32_t mask = 1; mask < 1u << s.some; ++mask)
    if (s.classes[size_t(index)].goal_if[mask - 1] >= 0 &&
        members_can_end(f, s, -1, f.served | mask))
      return true;
  return false;
}

bool Matcher::is_other_key(const Frame& f, const ObjectShape& s, const std::string& key) const {
  const auto at =
      std::lower_bound(s.names.begin(), s.names.end(), key,
                       [](const NamedKey& k, const std::string& x) { return k.name < x; });
  return (at == s.names.end() || at->name != key) && !listed(f, key);
}

bool Matcher::listed(const Frame& f, std::string_view text) const {
  for (uint32_t i = f.list; i; i = list_[i - 1].next)
    if (list_[i - 1].text == text) return true;
  return false;
}

// Of a key that has begun and can only become one of finitely many: whether one of them is not
// named or there already.
bool Matcher::new_key(const Config& c) {
  const Frame& f = frames_[c.frame];
  const ObjectShape& s = object_of(f);
  Langs& langs = grammar_->langs();
  const std::string prefix = decode_text(std::string_view(bytes_).substr(size_t(c.start)));
  int64_t taken = 0;
  const auto take = [&](const std::string& key) {
    if (key.compare(0, prefix.size(), prefix) == 0 &&
        langs.accepts(langs.steps(c.lang, std::string_view(key).substr(prefix.size()))))
      ++taken;
  };
  auto at = std::lower_bound(s.names.begin(), s.names.end(), prefix,
                             [](const NamedKey& k, const std::string& x) { return k.name < x; });
  for (; at != s.names.end() && at->name.compare(0, prefix.size(), prefix) == 0; ++at)
    take(at->name);
  for (uint32_t i = f.list; i; i = list_[i - 1].next) take(list_[i - 1].text);
  return taken == 0 || langs.count(c.lang, taken + 1) > taken;
}

void Matcher::begin_key(uint32_t frame) {
  const ObjectShape& s = object_of(frames_[frame]);
  Config c{};
  c.frame = frame;
  c.start = int32_t(bytes_.size());
  if (any_allowed(frames_[frame], s, 0, int32_t(s.names.size()))) {
    c.phase = Phase::kKey;
    add(c);
  }
  for (int32_t k = 0; k < int32_t(s.classes.size()); ++k)
    if (class_allowed(frames_[frame], s, k)) {
      c.phase = Phase::kOtherKey;
      c.index = uint8_t(k);
      c.lang = s.classes[size_t(k)].lang;
      add(c);
    }
}

void Matcher::end_key(const Config& c, int32_t name) {
  const NamedKey& k = object_of(frames_[c.frame]).names[size_t(name)];
  after_member(c.frame, name, k.goal_if, k.goal, nullptr);
}

void Matcher::after_member(uint32_t frame, int32_t name, const std::vector<Goal>& goal_if,
                           Goal goal, const std::string* other) {
  const Frame f = frames_[frame];
  const ObjectShape& s = object_of(f);
  for (uint32_t mask = 0; mask < 1u << s.some; ++mask) {
    if (mask & f.served) continue;
    const Goal g = mask ? goal_if[mask - 1] : goal;
    if (g < 0 || !members_can_end(f, s, name, f.served | mask)) continue;
    Frame next = f;
    ++next.count;
    next.served |= mask;
    if (name >= 0) {
      const size_t n = (s.names.size() + 63) / 64;
      next.words = uint32_t(words_.size());
      words_.resize(words_.size() + n);
      std::copy_n(words_.begin() + f.words, n, words_.begin() + next.words);
      words_[next.words + size_t(name >> 6)] |= uint64_t(1) << (name & 63);
      next.missing -= s.names[size_t(name)].required;
      next.order = s.names[size_t(name)].order;
    } else {
      list_.push_back({f.list, 0, 0, *other});
      next.list = uint32_t(list_.size());
      next.order = INT32_MAX;
    }
    Config c{};
    c.phase = Phase::kAfterKey;
    c.id = g;
    c.frame = add_frame(next);
    add(c);
  }
}

}  // namespace tokops::grammar
