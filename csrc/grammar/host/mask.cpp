// Masks: which tokens can follow. Tokens are walked as a tree of bytes; where the text is inside a
// string, a number or another lexeme, what most tokens do there is looked up in a record instead.
#include <algorithm>
#include <bit>

#include "compact.h"
#include "mask_filler.h"

namespace tokops::grammar {

namespace {

constexpr int32_t kSmall = 16;  // nodes that are walked rather than looked up

}  // namespace

void MaskFiller::run() {
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

bool MaskFiller::has_record(const Config& c) const {
  switch (c.phase) {
    case Phase::kString:
      return c.escape == 0;
    case Phase::kNumber:
      return !unique_item(c) && !held(c);
    case Phase::kOtherKey:
      return c.escape == 0 &&
             (c.lang == langs_.text() ||
              endless(langs_, object_of(m_.frame(c.frame)).classes[c.index].lang)) &&
             !held(c);
    case Phase::kRule:
      return true;
    default:
      return false;
  }
}

bool MaskFiller::takes_space(const Config& c) const {
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

void MaskFiller::below(int32_t node) {
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

void MaskFiller::spaces(std::vector<Config>& all, int32_t node) {
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

void MaskFiller::walk(int32_t node) {
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

bool MaskFiller::quick_bytes(ByteSet& s) const {
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

}  // namespace tokops::grammar
