// Values: strings, numbers, literals, arrays and their items.
#include "compact.h"
#include "matcher.h"
#include "text.h"

namespace tokops::grammar {

void Matcher::string_byte(Config c, uint8_t b) {
  Langs& langs = grammar_->langs();
  const Strings& s = grammar_->schema(frames_[c.frame].schema).value(c.id).strings[c.index];
  if (b == '"' && c.escape == 0) {
    if (langs.accepts(c.lang) && c.count >= s.shortest) end_value(c.frame);
    return;
  }
  char out[4];
  int n;
  if (!decode_byte(c.escape, b, out, n)) return;
  for (int i = 0; i < n && c.lang != kNothing; ++i) c.lang = langs.step(c.lang, uint8_t(out[i]));
  if (c.lang == kNothing || !langs.alive(c.lang) || !escape_viable(langs, c.lang, c.escape)) return;
  if (s.shortest > 0 || s.longest >= 0) {
    c.count += n > 0 && (uint8_t(out[0]) & 0xc0) != 0x80;
    if (s.longest >= 0) {
      const int32_t needs = c.escape                 ? fewest_after_escape(langs, c.lang, c.escape)
                            : c.lang == langs.text() ? 0
                                                     : fewest_chars(langs, c.lang);
      if (c.count + needs > s.longest) return;
    }
  }
  const uint32_t parent = c.frame;
  if (frames_[parent].kind == Frame::kArray && array_of(frames_[parent]).unique &&
      !fresh(c, parent))
    return;
  add(c);
}

void Matcher::begin_value(const Config& c, uint8_t b) {
  uint32_t frame = c.frame;
  const Value& v = grammar_->schema(frames_[frame].schema).value(c.id);
  Langs& langs = grammar_->langs();
  const bool unique = frames_[frame].kind == Frame::kArray && array_of(frames_[frame]).unique;
  if (unique) {
    Frame f = frames_[frame];
    f.start = int32_t(bytes_.size() - 1);
    frame = add_frame(f);
  }
  const auto taken = [&](const char* literal) { return unique && listed(frames_[frame], literal); };
  Config next{};
  next.frame = frame;
  switch (b) {
    case '"':
      for (size_t i = 0; i < v.strings.size(); ++i) {
        next.phase = Phase::kString;
        next.id = c.id;
        next.index = uint8_t(i);
        next.lang = v.strings[i].lang;
        next.start = 0;
        if (unique && !fresh(next, frame)) continue;
        add(next);
      }
      break;
    case '{':
      for (const auto& s : v.objects) {
        Frame f{};
        f.kind = Frame::kObject;
        f.schema = frames_[frame].schema;
        f.parent = frame;
        f.shape = s.get();
        f.missing = s->required;
        f.words = uint32_t(words_.size());
        words_.resize(words_.size() + (s->names.size() + 63) / 64);
        Config open{};
        open.phase = Phase::kObjectOpen;
        open.frame = add_frame(f);
        add(open);
      }
      break;
    case '[':
      for (const auto& s : v.arrays) {
        Frame f{};
        f.kind = Frame::kArray;
        f.schema = frames_[frame].schema;
        f.parent = frame;
        f.shape = s.get();
        f.words = uint32_t(words_.size());
        words_.resize(words_.size() + s->counts.size());
        Config open{};
        open.phase = Phase::kArrayOpen;
        open.frame = add_frame(f);
        add(open);
      }
      break;
    case 'n':
    case 't':
    case 'f':
      if (b == 'n'   ? v.null && !taken("null")
          : b == 't' ? v.yes && !taken("true")
                     : v.no && !taken("false")) {
        next.phase = Phase::kLiteral;
        next.lang = langs.word(b == 'n' ? "ull" : b == 't' ? "rue" : "alse");
        add(next);
      }
      break;
    default:
      if (v.number != kNothing && (b == '-' || (b >= '0' && b <= '9'))) {
        next.phase = Phase::kNumber;
        next.lang = v.number;
        advance(next, b);
      }
  }
}

void Matcher::end_value(uint32_t frame) {
  const Frame f = frames_[frame];
  switch (f.kind) {
    case Frame::kRoot: {
      Config c{};
      c.phase = Phase::kDone;
      add(c);
      break;
    }
    case Frame::kSchema:
      enter(f.missing, f.parent);
      break;
    case Frame::kJoin:
      for (uint32_t i = f.list; i; i = list_[i - 1].next) end_value(list_[i - 1].frame);
      break;
    case Frame::kArray:
      if (array_of(f).unique && unknown_item_) ++unchecked_;
      if (array_of(f).unique && !unknown_item_) {
        const std::string item = canonical_text(std::string_view(bytes_).substr(size_t(f.start)));
        if (listed(f, item)) return;
        list_.push_back({without_reserved(f.list), 0, 0, item});
        Frame with = f;
        with.list = uint32_t(list_.size());
        frame = add_frame(with);
      }
      [[fallthrough]];
    case Frame::kObject: {
      Config c{};
      c.phase = Phase::kAfterValue;
      c.frame = frame;
      add(c);
      break;
    }
    case Frame::kCall:
      break;
  }
}

bool Matcher::array_closes(const Frame& f) const {
  const ArrayShape& s = array_of(f);
  if (f.count < s.fewest) return false;
  for (size_t k = 0; k < s.counts.size(); ++k)
    if (int64_t(words_[f.words + k]) < s.counts[k].fewest) return false;
  return true;
}

void Matcher::begin_item(uint32_t frame, int32_t b) {
  Frame f = frames_[frame];
  const ArrayShape& s = array_of(f);
  if (f.count >= s.most) return;
  if (s.unique && !reserve(f, &f.list)) return;
  const int32_t at = s.position(f.count);
  for (uint32_t sub = 0; sub < s.goals[size_t(at)].size(); ++sub) {
    const Goal g = s.goals[size_t(at)][sub];
    if (g < 0) continue;
    uint32_t owner = frame;
    const bool endless =
        s.most == kUnbounded && f.count >= std::max<int32_t>(s.fewest, int32_t(s.goals.size()) - 1);
    if (!endless || s.unique || !s.counts.empty()) {
      Frame next = f;
      ++next.count;
      if (!s.counts.empty()) {
        int32_t counts[8];
        bool over = false;
        for (size_t k = 0; k < s.counts.size(); ++k) {
          counts[k] = int32_t(words_[f.words + k]) + int32_t(sub >> k & 1);
          over |= counts[k] > s.counts[k].most;
          if (s.counts[k].most == kUnbounded) counts[k] = std::min(counts[k], s.counts[k].fewest);
        }
        if (over || !s.viable[size_t(array_state(s, next.count, counts))]) continue;
        next.words = uint32_t(words_.size());
        for (size_t k = 0; k < s.counts.size(); ++k) words_.push_back(uint64_t(counts[k]));
        if (s.unique) reserve_counted(next, g);
      }
      if (s.unique) {  // some item that isn't there yet
        const auto& few = grammar_->schema(f.schema).value(g).few;
        if (few && unknown_item_) ++unchecked_;
        if (few && std::all_of(few->begin(), few->end(),
                               [&](const std::string& x) { return listed(next, x); }))
          continue;
      }
      owner = add_frame(next);
    }
    expect(g, owner, b);
  }
}

void Matcher::expect(Goal goal, uint32_t frame, int32_t b) {
  expected_.push_back({goal, frame, b});
}

// Values of one goal are read once, whichever frames they belong to: otherwise two ways to read an
// object would be four ways to read one inside another, and so on.
void Matcher::begin_expected() {
  std::vector<Expected> all;
  all.swap(expected_);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].byte == -2) continue;
    uint32_t frame = all[i].frame;
    const auto separate = [&](uint32_t f) {
      return frames_[f].kind == Frame::kArray && array_of(frames_[f]).unique;
    };
    uint32_t list = 0;
    if (!separate(frame))
      for (size_t j = i + 1; j < all.size(); ++j)
        if (all[j].goal == all[i].goal && all[j].byte == all[i].byte &&
            frames_[all[j].frame].schema == frames_[frame].schema && !separate(all[j].frame)) {
          if (all[j].frame != frame) {
            list_.push_back({list, all[j].frame, 0, ""});
            list = uint32_t(list_.size());
          }
          all[j].byte = -2;
        }
    if (list) {
      list_.push_back({list, frame, 0, ""});
      Frame join{};
      join.kind = Frame::kJoin;
      join.schema = frames_[frame].schema;
      join.list = uint32_t(list_.size());
      frame = add_frame(join);
    }
    Config c{};
    c.phase = Phase::kValue;
    c.id = all[i].goal;
    c.frame = frame;
    if (all[i].byte >= 0)
      begin_value(c, uint8_t(all[i].byte));
    else
      add(c);
  }
}

}  // namespace tokops::grammar
