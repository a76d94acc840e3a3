// Masks: which tokens can follow. Tokens are walked as a tree of bytes; where the text is inside a
// string, a number or another lexeme, what most tokens do there is looked up in a record instead.
#include <algorithm>
#include <bit>
#include <cstring>

#include "compact.h"
#include "matcher.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr int32_t kSmall = 16;  // nodes that are walked rather than looked up

}  // namespace

class MaskFiller {
 public:
  MaskFiller(Matcher& m, uint32_t* mask)
      : m_(m), v_(*m.grammar().vocabulary()), langs_(m.grammar().langs()), mask_(mask) {}

  void run() {
    words_ = v_.words();
    if (m_.done_) {
      std::memset(mask_, 0, size_t(words_) * 4);
      return set_eos();
    }
    // A lexeme comes first, most often the inside of a string: its mask is copied rather than
    // added.
    blank_ = std::any_of(m_.begin(), m_.end(), [&](const Config& c) { return has_record(c); });
    if (!blank_) std::memset(mask_, 0, size_t(words_) * 4);
    below(0);
    if (blank_) std::memset(mask_, 0, size_t(words_) * 4);
    for (const int32_t t : verify_)
      if (!m_.allows(t)) mask_[t >> 5] &= ~(1u << (t & 31));
    if (m_.complete()) set_eos();
  }

 private:
  Matcher& m_;
  Vocabulary& v_;
  Langs& langs_;
  uint32_t* mask_;
  int32_t words_ = 0;
  bool blank_ = false;  // nothing has been written yet
  std::vector<int32_t>
      verify_;  // tokens that end an item of a unique array after a record's lexeme: accept decides

  void start() {
    if (!blank_) return;
    blank_ = false;
    std::memset(mask_, 0, size_t(words_) * 4);
  }
  void set(int32_t t) { mask_[t >> 5] |= 1u << (t & 31); }
  void set_eos() {
    for (const int32_t e : v_.eos())
      if (e >= 0 && e < v_.width()) set(e);
  }
  void set_tokens(int32_t from, int32_t to) {
    for (int32_t i = from; i < to; ++i) set(v_.order()[i]);
  }
  void merge(const Mask& from) {
    if (blank_) {
      blank_ = false;
      std::memcpy(mask_, from.words.data(), size_t(words_) * 4);
      return;
    }
    for (int32_t w = 0; w < words_; ++w) mask_[w] |= from.words[size_t(w)];
  }

  bool unique_item(const Config& c) const {
    const Frame& f = m_.frame(c.frame);
    return f.kind == Frame::kArray && static_cast<const ArrayShape*>(f.shape)->unique;
  }
  const Strings& strings_of(const Config& c) const {
    return m_.grammar().schema(m_.frame(c.frame).schema).value(c.id).strings[c.index];
  }
  bool has_record(const Config& c) const {
    switch (c.phase) {
      case Phase::kString:
        return c.escape == 0 &&
               (!unique_item(c) || c.lang == langs_.text() || endless(langs_, strings_of(c).lang));
      case Phase::kNumber:
        return !unique_item(c);
      case Phase::kOtherKey:
        return c.escape == 0 &&
               (c.lang == langs_.text() ||
                endless(langs_, object_of(m_.frame(c.frame)).classes[c.index].lang));
      case Phase::kRule:
        return true;
      default:
        return false;
    }
  }

  bool takes_space(const Config& c) const {
    switch (c.phase) {
      case Phase::kValue:
      case Phase::kObjectOpen:
      case Phase::kObjectNext:
      case Phase::kAfterKey:
      case Phase::kArrayOpen:
      case Phase::kAfterValue:
        return c.space < m_.grammar().most_space();
      default:
        return false;
    }
  }

  // Sets the tokens below a node that the present state takes.
  void below(int32_t node) {
    const int32_t first = node + 1, end = v_.ends()[node];
    if (first >= end) return;
    if (end - first <= kSmall) {
      start();
      return walk(node);
    }
    // At the root one whitespace character is walked: what follows it is best looked up at its own
    // node.
    std::vector<Config> looked_up, spaced, walked;
    for (const Config* c = m_.begin(); c != m_.end(); ++c)
      (has_record(*c) ? looked_up : node != 0 && takes_space(*c) ? spaced : walked).push_back(*c);
    if (looked_up.empty() && spaced.empty()) {
      start();
      return walk(node);
    }
    if (!looked_up.empty()) look_up(looked_up, node);
    start();
    if (!spaced.empty()) spaces(spaced, node);
    walked.insert(walked.end(), spaced.begin(), spaced.end());
    if (walked.empty()) return;
    begin_state();
    for (const Config& c : walked) m_.configs_.push_back(c);
    walk(node);
    end_state();
  }

  // Tokens below a node that begin with whitespace, which configurations may take more of. After it
  // they go on without.
  void spaces(std::vector<Config>& all, int32_t node) {
    const int32_t limit = m_.grammar().most_space();
    static const ByteSet follow = [] {
      ByteSet s;
      for (const char b : std::string_view("{}[],:\"-0123456789tfn")) s.add(uint8_t(b));
      return s;
    }();
    const auto r = m_.grammar().lexemes().record(m_.grammar().space_language(), LexemeKind::kRaw,
                                                 true, node, &follow);
    if (r->given_up) {
      begin_state();
      for (const Config& c : all) m_.configs_.push_back(c);
      walk(node);
      end_state();
      for (Config& c : all) c.space = uint16_t(limit);
      return;
    }
    std::vector<Config> left = all;
    while (!left.empty()) {
      const int32_t most = limit - left[0].space;
      for (auto at = r->needs.rbegin(); at != r->needs.rend() && at->first <= most; ++at)
        set(at->second);
      begin_state();
      std::vector<Config> others;
      for (Config c : left) {
        if (limit - c.space != most) {
          others.push_back(c);
          continue;
        }
        c.space = uint16_t(limit);
        m_.configs_.push_back(c);
      }
      if (r->rest.size() > 2) {
        m_.unknown_item_ = true;
        rest(*r, 0, 0, most, m_.unchecked_);
        m_.unknown_item_ = false;
      }
      end_state();
      left = std::move(others);
    }
    for (Config& c : all) c.space = uint16_t(limit);
  }

  void begin_state() {
    m_.marks_.push_back(m_.mark());
    m_.entered_.clear();
  }
  void end_state() { m_.pop(1); }

  void walk(int32_t node) {
    const uint8_t* const bytes = v_.bytes();
    const int32_t* const ends = v_.ends();
    const int32_t* const first = v_.first_tokens();
    ByteSet may;
    const bool known = quick_bytes(may);
    const auto visit = [&](int32_t c) {
      if (!m_.push(bytes[c])) return;
      set_tokens(first[c], first[c + 1]);
      if (ends[c] > c + 1) below(c);
      m_.pop(1);
    };
    if (known && v_.indexed(node)) {
      for (int w = 0; w < 4; ++w)
        for (uint64_t left = may.words[w]; left; left &= left - 1)
          if (const int32_t c = v_.child(node, uint8_t(64 * w + std::countr_zero(left)))) visit(c);
      return;
    }
    for (int32_t c = node + 1; c < ends[node]; c = ends[c])
      if (!known || may.has(bytes[c])) visit(c);
  }

  // Bytes that the state may take, where that is quickly said.
  bool quick_bytes(ByteSet& s) const {
    const Grammar& g = m_.grammar();
    bool known = true;
    for (const Config* c = m_.begin(); c != m_.end(); ++c) {
      const bool spaces = c->phase == Phase::kValue || c->phase == Phase::kObjectOpen ||
                          c->phase == Phase::kObjectNext || c->phase == Phase::kAfterKey ||
                          c->phase == Phase::kArrayOpen || c->phase == Phase::kAfterValue;
      if (spaces && c->space < g.most_space())
        for (const uint8_t b : {' ', '\t', '\n'})
          if (g.space(b)) s.add(b);
      switch (c->phase) {
        case Phase::kValue:
        case Phase::kArrayOpen: {
          if (c->phase == Phase::kArrayOpen) s.add(']');
          for (const char b : std::string_view("\"-0123456789tfn[{")) s.add(uint8_t(b));
          break;
        }
        case Phase::kObjectOpen:
          s.add('}');
          [[fallthrough]];
        case Phase::kObjectNext:
          s.add('"');
          break;
        case Phase::kAfterKey:
          s.add(':');
          break;
        case Phase::kAfterValue:
          s.add(',');
          s.add(m_.frame(c->frame).kind == Frame::kObject ? '}' : ']');
          break;
        case Phase::kKey: {
          if (c->escape) {
            known = false;
            break;
          }
          s.add('"');
          s.add('\\');
          const ObjectShape& shape = object_of(m_.frame(c->frame));
          for (int32_t k = shape.tree[size_t(c->id)].first_child; k >= 0;
               k = shape.tree[size_t(k)].next)
            s.add(shape.tree[size_t(k)].byte);
          break;
        }
        case Phase::kDone:
          break;
        default:
          known = false;
      }
    }
    return known;
  }

  // --- lexemes

  void look_up(const std::vector<Config>& all, int32_t node) {
    // Keys of classes clear what they may not hold, so that each is worked out before the others
    // are added.
    std::vector<uint32_t> before;
    for (const Config& c : all) {
      if (c.phase != Phase::kOtherKey && !unique_item(c)) continue;
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
      if (c.phase != Phase::kOtherKey && !unique_item(c)) one(c, node);
  }

  void alone(const Config& c, int32_t node) {
    begin_state();
    m_.configs_.push_back(c);
    walk(node);
    end_state();
  }

  void one(const Config& c, int32_t node) {
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
    else if (c.phase == Phase::kString && unique_item(c))
      remove_items(c, node);
  }

  // Bytes that the present state may take; some may turn out to be refused.
  ByteSet first_bytes() {
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

  void inside(Record& r, const Config& c, const Strings* bounds) {
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

  // The state once the lexeme has ended.
  void after(const Config& c) {
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

  // `unchecked`: of the matcher, before the lexeme's end: where it has grown, an item of a unique
  // array has ended.
  void rest(const Record& r, int32_t node, int32_t fewest, int32_t most, int64_t unchecked) {
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

  // Takes back the tokens below a node that spell a key which is named or there already.
  void remove_taken(const Config& c, int32_t node) {
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
    spell(node, taken.data(), taken.data() + taken.size(), 0, 0, node);
  }

  // The same for strings that are items of the array already.
  void remove_items(const Config& c, int32_t node) {
    const Frame& f = m_.frame(c.frame);
    if (!f.list) return;
    const std::string prefix =
        "\"" + decode_text(std::string_view(m_.bytes_).substr(size_t(f.start) + 1));
    std::vector<std::string_view> taken;
    for (uint32_t i = f.list; i; i = m_.list_[i - 1].next) {
      const std::string& item = m_.list_[i - 1].text;
      if (item.compare(0, prefix.size(), prefix) == 0)
        taken.push_back(std::string_view(item).substr(prefix.size()));
    }
    if (taken.empty()) return;
    std::sort(taken.begin(), taken.end());
    spell(node, taken.data(), taken.data() + taken.size(), 0, 0, node);
  }

  // Tokens below `node`, where `depth` bytes of the words [low, high) have been read.
  void spell(int32_t node, const std::string_view* low, const std::string_view* high, size_t depth,
             uint32_t escape, int32_t root) {
    const int32_t* const ends = v_.ends();
    for (int32_t c = node + 1; c < ends[node]; c = ends[c]) {
      const uint8_t b = v_.bytes()[c];
      if (b == '"' && escape == 0) {
        if (low->size() == depth)
          for (int32_t k = v_.first_tokens()[c]; k < v_.first_tokens()[ends[c]]; ++k) {
            const int32_t t = v_.order()[k];
            mask_[t >> 5] &= ~(1u << (t & 31));
          }
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
      if (l < h && ends[c] > c + 1) spell(c, l, h, depth + size_t(n), next, root);
    }
  }
};

void Matcher::fill(uint32_t* mask) { MaskFiller(*this, mask).run(); }

}  // namespace tokops::grammar
