// Masks inside a lexeme: its record, what follows its end, and what it may not spell.
#include <algorithm>

#include "compact.h"
#include "mask_filler.h"
#include "text.h"

namespace tokops::grammar {

void MaskFiller::look_up(const std::vector<Config>& all, int32_t node) {
  // Keys of classes clear what they may not hold, so that each is worked out before the others
  // are added.
  std::vector<uint32_t> before;
  for (const Config& c : all) {
    if (!clears(c)) continue;
    if (blank_) {
      one(c, node);
      continue;
    }
    before.assign(mask_, mask_ + words_);
    std::memset(mask_, 0, size_t(words_) * 4);
    one(c, node);
    for (int32_t w = 0; w < words_; ++w) mask_[w] |= before[size_t(w)];
  }
  for (const Config& c : all)
    if (!clears(c)) one(c, node);
}

void MaskFiller::alone(const Config& c, int32_t node) {
  begin_state();
  m_.configs_.push_back(c);
  walk(node);
  end_state();
}

void MaskFiller::one(const Config& c, int32_t node) {
  const bool raw = c.phase == Phase::kNumber || c.phase == Phase::kRule;
  const Strings* bounds = nullptr;
  if (c.phase == Phase::kString) {
    bounds = &strings_of(c);
    if (bounds->shortest == 0 && bounds->longest < 0) bounds = nullptr;
  }
  ByteSet follow;
  if (c.phase == Phase::kRule) {
    begin_state();
    after(c);
    follow = first_bytes();
    end_state();
  }
  const auto r = m_.grammar().lexemes().record(c.lang, raw ? LexemeKind::kRaw : LexemeKind::kText,
                                               bounds != nullptr, node,
                                               c.phase == Phase::kRule ? &follow : nullptr);
  if (r->given_up) {
    start();
    return alone(c, node);
  }
  const int32_t fewest = bounds ? bounds->shortest - c.count : 0;
  const int32_t most = bounds && bounds->longest >= 0 ? bounds->longest - c.count : INT32_MAX;
  const bool all = fewest <= 0 && r->longest <= most;
  const bool all_inside = !bounds || r->needs.empty() || r->needs.front().first <= most;
  if (!r->closing_mask.words.empty() && !r->inside.words.empty() && all && all_inside) {
    merge(r->closing_mask);
  } else {
    inside(*r, c, bounds);
    start();
    if (!r->closing_mask.words.empty() && r->inside.words.empty() && all)
      merge(r->closing_mask);
    else
      for (const Record::Ending& e : r->closing)
        if (e.chars >= fewest && e.chars <= most) set(e.token);
  }
  if (r->rest.size() > 2) {
    begin_state();
    m_.unknown_item_ = true;
    after(c);
    const int64_t unchecked = m_.unchecked_;
    if (m_.begin() != m_.end()) rest(*r, 0, fewest, most, unchecked);
    m_.unknown_item_ = false;
    end_state();
  }
  if (c.phase == Phase::kOtherKey)
    remove_taken(c, node);
  else if (c.phase == Phase::kString && clears(c))
    remove_items(c, node);
}

ByteSet MaskFiller::first_bytes() {
  ByteSet s;
  if (quick_bytes(s)) return s;
  for (const Config* c = m_.begin(); c != m_.end(); ++c) {
    if (c->phase != Phase::kRule && c->phase != Phase::kNumber) continue;
    const uint8_t* const classes = langs_.classes(c->lang);
    int8_t of_class[256];
    std::memset(of_class, -1, sizeof of_class);
    for (int b = 0; b < 256; ++b) {
      int8_t& takes = of_class[classes[b]];
      if (takes < 0) takes = langs_.step(c->lang, uint8_t(b)) != kNothing;
      if (takes) s.add(uint8_t(b));
    }
  }
  // Others that quick_bytes doesn't know are inside strings and keys, where no lexeme of a rule
  // ends.
  return s;
}

void MaskFiller::inside(Record& r, const Config& c, const Strings* bounds) {
  const int32_t most = bounds && bounds->longest >= 0 ? bounds->longest - c.count : INT32_MAX;
  if (!bounds || r.needs.empty() || r.needs.front().first <= most) {
    if (!r.inside.words.empty())
      merge(r.inside);
    else {
      start();
      for (const int32_t t : r.few) set(t);
    }
    return;
  }
  if (r.inside.words.empty()) {
    start();
    for (auto at = r.needs.rbegin(); at != r.needs.rend() && at->first <= most; ++at)
      set(at->second);
    return;
  }
  std::shared_ptr<const Mask> within;
  {
    const std::lock_guard guard(r.lock);
    if (r.within.size() <= size_t(most)) r.within.resize(size_t(most) + 1);
    if (!r.within[size_t(most)]) {
      auto made = std::make_shared<Mask>(r.inside);
      for (const auto& [needed, token] : r.needs) {
        if (needed <= most) break;
        made->clear(token);
      }
      r.within[size_t(most)] = std::move(made);
    }
    within = r.within[size_t(most)];
  }
  merge(*within);
}

void MaskFiller::after(const Config& c) {
  switch (c.phase) {
    case Phase::kString:
    case Phase::kNumber:
      m_.end_value(c.frame);
      break;
    case Phase::kRule:
      m_.enter(c.id, c.frame);
      break;
    case Phase::kOtherKey: {
      const KeyClass& k = object_of(m_.frame(c.frame)).classes[c.index];
      const std::string unknown =
          "\xff";  // no key is this; which key it is changes nothing of what follows at once
      m_.after_member(c.frame, -1, k.goal_if, k.goal, &unknown);
      break;
    }
    default:
      break;
  }
}

void MaskFiller::rest(const Record& r, int32_t node, int32_t fewest, int32_t most,
                      int64_t unchecked) {
  ByteSet may;
  const bool known = quick_bytes(may);
  for (int32_t c = node + 1; c < r.rest[size_t(node)].end; c = r.rest[size_t(c)].end) {
    const uint8_t b = r.rest[size_t(c)].byte;
    if (known && !may.has(b)) continue;
    const int64_t before = m_.unchecked_;
    if (!m_.push(b)) continue;
    for (int32_t k = r.rest[size_t(c)].first; k < r.rest[size_t(c) + 1].first; ++k) {
      const Record::Ending& e = r.rest_tokens[size_t(k)];
      if (e.chars < fewest || e.chars > most) continue;
      set(e.token);
      if (m_.unchecked_ > unchecked) verify_.push_back(e.token);
    }
    if (r.rest[size_t(c)].end > c + 1) rest(r, c, fewest, most, unchecked);
    m_.pop(1);
    m_.unchecked_ = before;
  }
}

void MaskFiller::remove_taken(const Config& c, int32_t node) {
  const Frame& f = m_.frame(c.frame);
  const ObjectShape& s = object_of(f);
  const std::string prefix = decode_text(std::string_view(m_.bytes_).substr(size_t(c.start)));
  auto low = std::lower_bound(s.names.begin(), s.names.end(), prefix,
                              [](const NamedKey& k, const std::string& x) { return k.name < x; });
  std::vector<std::string_view> taken;
  for (; low != s.names.end() && low->name.compare(0, prefix.size(), prefix) == 0; ++low)
    taken.push_back(std::string_view(low->name).substr(prefix.size()));
  for (uint32_t i = f.list; i; i = m_.list_[i - 1].next) {
    const std::string& key = m_.list_[i - 1].text;
    if (key.compare(0, prefix.size(), prefix) == 0)
      taken.push_back(std::string_view(key).substr(prefix.size()));
  }
  if (taken.empty()) return;
  std::sort(taken.begin(), taken.end());
  spell(node, taken.data(), taken.data() + taken.size(), 0, 0);
}

void MaskFiller::remove_items(const Config& c, int32_t node) {
  std::vector<std::string> like, taken;
  const Frame& f = m_.frame(c.frame);
  if (unique_item(c) && f.list)
    like = taken = m_.items_like(f, std::string_view(m_.bytes_).substr(size_t(f.start)));
  if (held(c))
    for (auto& [text, gone] : m_.strings_like(c)) {
      if (gone) taken.push_back(text);
      like.push_back(std::move(text));
    }
  const auto spelled = [&](std::vector<std::string>& words, bool verify) {
    if (words.empty()) return;
    std::sort(words.begin(), words.end());
    const std::vector<std::string_view> views(words.begin(), words.end());
    spell(node, views.data(), views.data() + views.size(), 0, 0, verify);
  };
  spelled(taken, false);
  // A part of a word can become another one as long as strings may be as long as they like.
  const Strings& s = strings_of(c);
  if (s.longest >= 0 || (c.lang != langs_.text() && !endless(langs_, s.lang))) spelled(like, true);
}

void MaskFiller::spell(int32_t node, const std::string_view* low, const std::string_view* high,
                       size_t depth, uint32_t escape, bool verify) {
  const int32_t* const ends = v_.ends();
  const auto each = [&](int32_t from, int32_t to, auto&& then) {
    for (int32_t k = v_.first_tokens()[from]; k < v_.first_tokens()[to]; ++k) then(v_.order()[k]);
  };
  for (int32_t c = node + 1; c < ends[node]; c = ends[c]) {
    const uint8_t b = v_.bytes()[c];
    if (b == '"' && escape == 0) {
      if (low->size() == depth && !verify)
        each(c, ends[c], [&](int32_t t) { mask_[t >> 5] &= ~(1u << (t & 31)); });
      continue;
    }
    uint32_t next = escape;
    char out[4];
    int n;
    if (!decode_byte(next, b, out, n)) continue;
    const std::string_view *l = low, *h = high;
    for (int i = 0; i < n && l < h; ++i) {
      const size_t at = depth + size_t(i);
      while (l < h && (l->size() <= at || uint8_t((*l)[at]) < uint8_t(out[i]))) ++l;
      const std::string_view* e = l;
      while (e < h && uint8_t((*e)[at]) == uint8_t(out[i])) ++e;
      h = e;
    }
    if (l == h) continue;
    if (verify) each(c, c + 1, [&](int32_t t) { verify_.push_back(t); });
    if (ends[c] > c + 1) spell(c, l, h, depth + size_t(n), next, verify);
  }
}

}  // namespace tokops::grammar
