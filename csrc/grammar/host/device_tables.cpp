#include "device_tables.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "error.h"
#include "grammar/automaton.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr size_t kWordBytes = size_t(256) << 20;  // of all descriptions together
constexpr size_t kLongest = size_t(1) << 16;      // of one
constexpr size_t kDeepest = 2000;                 // frames on top of each other

template <class T>
void put(std::string& s, T x) {
  s.append(reinterpret_cast<const char*>(&x), sizeof x);
}
void put_text(std::string& s, std::string_view text) {
  put(s, uint32_t(text.size()));
  s.append(text);
}

}  // namespace

// Writes a matcher's state without positions.
class DeviceTables::Describer {
 public:
  Describer(DeviceTables& tables, const Matcher& m) : tables_(tables), m_(m) {}

  // Nothing where it would be too long.
  std::optional<std::string> run(int32_t language) {
    std::vector<std::string> all;
    for (const Config* c = m_.begin(); c != m_.end() && room_; ++c) all.push_back(config(*c));
    std::sort(all.begin(), all.end());
    std::string s;
    put(s, language);
    for (const std::string& x : all) {
      put_text(s, x);
      if (s.size() > kLongest) room_ = false;
    }
    if (!room_) return std::nullopt;
    return s;
  }

 private:
  DeviceTables& tables_;
  const Matcher& m_;
  bool room_ = true;
  // Of frames that lead to none that is still being described; `inside`: an item of it is being
  // read.
  std::unordered_map<uint64_t, int32_t> known_;
  std::vector<uint32_t> open_;

  std::string_view text_from(int32_t start) { return m_.text().substr(size_t(start)); }

  std::string config(const Config& c) {
    std::string s;
    if (c.phase == Phase::kDone) return s;
    put(s, c.phase);
    put(s, c.index);
    put(s, c.space);
    put(s, c.id);
    put(s, c.lang);
    // What a character is tells nothing where any may stand; unique items have their text below.
    const bool any = c.phase == Phase::kString && c.lang == m_.grammar().langs().text();
    put(s, any ? escape_class(c.escape) : c.escape);
    int32_t count = c.count;
    if (c.phase == Phase::kString) {
      const Strings& b = m_.grammar().schema(m_.frame(c.frame).schema).value(c.id).strings[c.index];
      if (b.longest < 0) count = std::min(count, b.shortest);
    }
    put(s, count);
    if (c.phase == Phase::kOtherKey || (c.phase == Phase::kKey && c.escape != 0)) {
      const std::string_view raw = text_from(c.start);
      put_text(s, c.escape == 0 ? decode_text(raw) : std::string(raw));
    }
    const bool between =
        c.phase == Phase::kValue || c.phase == Phase::kArrayOpen || c.phase == Phase::kAfterValue;
    int32_t above = INT32_MAX;
    put(s, frame(c.frame, !between, &above));
    return s;
  }

  // The number of a frame's description. `above`: the lowest place in open_ that it leads back to,
  // if that is lower. A frame that is being described is named by how far above it stands.
  int32_t frame(uint32_t at, bool inside, int32_t* above) {
    if (!room_) return 0;
    const Frame& f = m_.frame(at);
    if (f.kind != Frame::kArray) inside = true;
    const uint64_t key = uint64_t(at) << 1 | uint64_t(inside);
    if (const auto k = known_.find(key); k != known_.end()) return k->second;
    for (size_t i = open_.size(); i-- > 0;)
      if (open_[i] == at) {
        *above = std::min(*above, int32_t(i));
        return -int32_t(open_.size() - i);
      }
    if (open_.size() >= kDeepest) {
      room_ = false;
      return 0;
    }
    const int32_t place = int32_t(open_.size());
    open_.push_back(at);
    int32_t lowest = INT32_MAX;
    std::string s = describe(f, inside, &lowest);
    open_.pop_back();
    if (s.size() > kLongest) room_ = false;
    const int32_t id = room_ ? tables_.intern(std::move(s)) : -1;
    if (id < 0) {
      room_ = false;
      return 0;
    }
    if (lowest >= place)
      known_[key] = id;
    else
      *above = std::min(*above, lowest);
    return id;
  }

  std::string describe(const Frame& f, bool inside, int32_t* lowest) {
    std::string s;
    put(s, f.kind);
    put(s, f.schema);
    switch (f.kind) {
      case Frame::kRoot:
        break;
      case Frame::kObject: {
        const auto& shape = *static_cast<const ObjectShape*>(f.shape);
        put(s, f.shape);
        put(s, shape.most == kUnbounded ? std::min(f.count, shape.fewest) : f.count);
        put(s, f.missing);
        put(s, f.served);
        if (m_.grammar().schema_order()) put(s, f.order);
        put_words(s, f, (shape.names.size() + 63) / 64);
        put_texts(s, f);
        put(s, frame(f.parent, true, lowest));
        break;
      }
      case Frame::kArray: {
        const auto& shape = *static_cast<const ArrayShape*>(f.shape);
        put(s, f.shape);
        const int32_t most =
            std::max({int32_t(shape.goals.size()), shape.fewest, last_count(shape)});
        put(s, shape.most == kUnbounded ? std::min(f.count, most) : f.count);
        put_words(s, f, shape.counts.size());
        put_texts(s, f);
        if (shape.unique) put_text(s, inside ? text_from(f.start) : std::string_view());
        put(s, frame(f.parent, true, lowest));
        break;
      }
      case Frame::kSchema:
        put(s, f.missing);
        put(s, frame(f.parent, true, lowest));
        break;
      case Frame::kJoin:
      case Frame::kCall: {
        put(s, f.rule);
        std::vector<std::pair<int32_t, int32_t>> edges;
        for (uint32_t i = f.list; i && room_; i = m_.list_[i - 1].next) {
          const auto& e = m_.list_[i - 1];
          const bool end = f.kind == Frame::kCall && e.state < 0;
          edges.emplace_back(e.state, end ? INT32_MIN : frame(e.frame, true, lowest));
        }
        std::sort(edges.begin(), edges.end());
        edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
        for (const auto& [state, to] : edges) {
          put(s, state);
          put(s, to);
        }
        break;
      }
    }
    return s;
  }

  static int32_t last_count(const ArrayShape& shape) {
    int32_t n = 0;
    for (const auto& c : shape.counts) n = std::max(n, c.from + 1);
    return n;
  }
  void put_words(std::string& s, const Frame& f, size_t n) {
    for (size_t i = 0; i < n; ++i) put(s, m_.words_[f.words + i]);
  }
  void put_texts(std::string& s, const Frame& f) {
    std::vector<std::pair<bool, std::string_view>> texts;
    for (uint32_t i = f.list; i; i = m_.list_[i - 1].next)
      texts.emplace_back(m_.list_[i - 1].state == kReserved, m_.list_[i - 1].text);
    std::sort(texts.begin(), texts.end());
    put(s, uint32_t(texts.size()));
    for (const auto& [reserved, t] : texts) {
      put(s, reserved);
      put_text(s, t);
    }
  }
};

DeviceTables::DeviceTables(std::shared_ptr<Vocabulary> v, int32_t max_states, int32_t max_masks)
    : vocabulary_(std::move(v)), max_states_(max_states), max_masks_(max_masks) {
  if (max_states < 1 || max_masks < 1)
    throw std::invalid_argument("DeviceTables: max_states and max_masks: expected at least 1");
}

void DeviceTables::check(int32_t state) const {
  if (state < 0 || state >= states())
    throw std::out_of_range("DeviceTables: there is no state " + std::to_string(state));
}

int32_t DeviceTables::intern(std::string&& words) {
  const auto known = frames_.find(words);
  if (known != frames_.end()) return known->second;
  if (word_bytes_ + words.size() > kWordBytes) return -1;
  word_bytes_ += words.size() + 64;
  const int32_t id = int32_t(frames_.size());
  frames_.emplace(std::move(words), id);
  return id;
}

void DeviceTables::changed(int32_t state) {
  if (dirty_[size_t(state)]) return;
  dirty_[size_t(state)] = 1;
  changed_.push_back(state);
}

std::vector<int32_t> DeviceTables::take_changed() {
  for (const int32_t s : changed_) dirty_[size_t(s)] = 0;
  std::vector<int32_t> all;
  all.swap(changed_);
  std::sort(all.begin(), all.end());
  return all;
}

int32_t DeviceTables::number(const std::string& words, const Origin& origin, bool accepting) {
  if (const auto known = by_words_.find(words); known != by_words_.end()) return known->second;
  if (states() >= max_states_ || word_bytes_ + words.size() > kWordBytes) return kNotKnown;
  word_bytes_ += words.size() + 64;
  const int32_t s = states();
  by_words_.emplace(words, s);
  next_.resize(next_.size() + 256, kNotKnown);
  accepting_.push_back(accepting);
  dirty_.push_back(0);
  explored_.push_back(0);
  mask_of_.push_back(kNotKnown);
  origin_.push_back(origin);
  changed(s);
  return s;
}

int32_t DeviceTables::add(const std::shared_ptr<const Grammar>& g) {
  if (g->vocabulary() != vocabulary_)
    throw std::invalid_argument("DeviceTables: the grammar is for another vocabulary");
  for (const Language& l : languages_)
    if (l.grammar == g) return l.start;
  Matcher m(g);
  const int32_t language = int32_t(languages_.size());
  const auto words = Describer(*this, m).run(language);
  const int32_t start = words ? number(*words, {-1, language, 0}, m.complete()) : kNotKnown;
  if (start >= 0) languages_.push_back({g, std::move(m), start});
  return start;
}

std::string DeviceTables::path(int32_t state) const {
  std::string s;
  for (; origin_[size_t(state)].from >= 0; state = origin_[size_t(state)].from)
    s.push_back(char(origin_[size_t(state)].byte));
  std::reverse(s.begin(), s.end());
  return s;
}

Matcher* DeviceTables::go(int32_t state) {
  Language& l = languages_[size_t(origin_[size_t(state)].language)];
  const std::string want = path(state);
  const std::string_view have = l.text.text();
  size_t same = 0;
  while (same < want.size() && same < have.size() && want[same] == have[same]) ++same;
  try {
    l.text.pop(have.size() - same);
    for (size_t i = same; i < want.size(); ++i)
      if (!l.text.push(uint8_t(want[i])))
        throw GrammarError("tables", "", "a text that was allowed is refused");
  } catch (const GrammarError&) {
    l.text = Matcher(l.grammar);
    return nullptr;
  }
  return &l.text;
}

// m is in the state, and is there again afterwards.
int32_t DeviceTables::extend(Matcher& m, int32_t state, uint8_t b) {
  const int32_t language = origin_[size_t(state)].language;
  int32_t to = kNotAllowed;
  if (m.push(b)) {
    const auto words = Describer(*this, m).run(language);
    to = words ? number(*words, {state, language, b}, m.complete()) : kNotKnown;
    m.pop(1);
  }
  if (to != kNotKnown) {
    next_[size_t(state) * 256 + b] = to;
    changed(state);
  }
  return to;
}

int32_t DeviceTables::visit(int32_t state, int32_t token) {
  check(state);
  const Vocabulary& v = *vocabulary_;
  if (token < 0 || token >= v.width()) return kDeadRow;
  if (v.is_eos(token)) return accepting(state) ? kFinishedRow : kDeadRow;
  if (token >= v.size() || v.token(token).empty()) return kDeadRow;
  const std::string& text = v.token(token);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(text.data());
  const int32_t n = int32_t(text.size());
  for (int32_t at = 0;;) {
    at = walk_bytes({next_.data(), accepting_.data(), states()}, bytes, at, n, &state);
    if (at == n) return state;
    if (next(state)[bytes[at]] == kNotAllowed) return kDeadRow;
    Matcher* const m = go(state);
    if (!m) return kHostRow;
    try {
      const int32_t to = extend(*m, state, bytes[at]);
      if (to < 0) return to == kNotAllowed ? kDeadRow : kHostRow;
    } catch (const GrammarError&) {
      Language& l = languages_[size_t(origin_[size_t(state)].language)];
      l.text = Matcher(l.grammar);
      return kHostRow;
    }
  }
}

bool DeviceTables::explore(int32_t state) {
  check(state);
  if (explored_[size_t(state)]) return true;
  Matcher* const m = go(state);
  if (!m) return false;
  bool all = true;
  try {
    for (int b = 0; b < 256; ++b)
      if (next(state)[b] == kNotKnown) all &= extend(*m, state, uint8_t(b)) != kNotKnown;
  } catch (const GrammarError&) {
    Language& l = languages_[size_t(origin_[size_t(state)].language)];
    l.text = Matcher(l.grammar);
    return false;
  }
  explored_[size_t(state)] = all;
  return all;
}

bool DeviceTables::explore_all(int32_t state, int32_t most) {
  check(state);
  std::vector<int32_t> found{state};
  std::vector<uint8_t> seen(size_t(max_states_), 0);
  seen[size_t(state)] = 1;
  bool all = true;
  for (size_t i = 0; i < found.size(); ++i) {
    if (most-- <= 0) return false;
    all &= explore(found[i]);
    for (int b = 0; b < 256; ++b) {
      const int32_t to = next(found[i])[b];
      if (to < 0 || seen[size_t(to)]) continue;
      seen[size_t(to)] = 1;
      found.push_back(to);
    }
  }
  return all;
}

void DeviceTables::explore_loops(int32_t state, int32_t token) {
  check(state);
  if (token < 0 || token >= vocabulary_->size()) return;
  for (const char b : vocabulary_->token(token)) {
    const int32_t to = next(state)[uint8_t(b)];
    if (to < 0) return;
    if (to == state) explore(state);
    state = to;
  }
}

int32_t DeviceTables::mask(int32_t state) {
  check(state);
  int32_t known = mask_of_[size_t(state)];
  if (known >= 0) return known;
  Matcher* const m = go(state);
  if (!m) return kNotKnown;
  const size_t words = size_t(vocabulary_->words());
  std::vector<uint32_t> row(words);
  try {
    m->fill(row.data());
  } catch (const GrammarError&) {
    Language& l = languages_[size_t(origin_[size_t(state)].language)];
    l.text = Matcher(l.grammar);
    return kNotKnown;
  }
  uint64_t hash = 0;
  for (const uint32_t w : row) hash = (hash ^ w) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
  const auto [low, high] = by_content_.equal_range(hash);
  for (auto at = low; at != high && known < 0; ++at)
    if (std::memcmp(pool(at->second), row.data(), words * 4) == 0) known = at->second;
  if (known < 0) {
    if (masks_ >= max_masks_) return kNotKnown;
    known = masks_++;
    pool_.insert(pool_.end(), row.begin(), row.end());
    by_content_.emplace(hash, known);
  }
  mask_of_[size_t(state)] = known;
  changed(state);
  return known;
}

std::unique_ptr<Matcher> DeviceTables::matcher(int32_t state) {
  check(state);
  auto m = std::make_unique<Matcher>(languages_[size_t(origin_[size_t(state)].language)].grammar);
  for (const char b : path(state))
    if (!m->push(uint8_t(b)))
      throw GrammarError("tables", "", "a text that was allowed is refused");
  return m;
}

int32_t DeviceTables::locate(const Matcher& m) {
  if (m.done()) return kNotKnown;
  for (size_t i = 0; i < languages_.size(); ++i) {
    if (languages_[i].grammar != m.shared()) continue;
    const auto words = Describer(*this, m).run(int32_t(i));
    if (!words) return kNotKnown;
    const auto known = by_words_.find(*words);
    return known == by_words_.end() ? kNotKnown : known->second;
  }
  return kNotKnown;
}

}  // namespace tokops::grammar
