// The states of a text, and what a byte does to a configuration.
#include "matcher.h"

#include <cstring>

#include "text.h"

namespace tokops::grammar {

namespace {

constexpr size_t kMostConfigs = 4096;
constexpr size_t kMostFrames = size_t(1) << 26;

}  // namespace

Matcher::Matcher(std::shared_ptr<const Grammar> g) : grammar_(std::move(g)) { start(); }

void Matcher::reset() {
  configs_.clear();
  frames_.clear();
  words_.clear();
  list_.clear();
  bytes_.clear();
  marks_.clear();
  history_.clear();
  done_ = false;
  start();
}

void Matcher::start() {
  marks_.push_back({0, 0, 0, 0, 0});
  entered_.clear();
  if (grammar_->has_rules()) {
    Frame call{};
    call.kind = Frame::kCall;
    call.rule = grammar_->start();
    const uint32_t f = add_frame(call);
    list_.push_back({0, 0, -1, ""});
    frames_[f].list = uint32_t(list_.size());
    enter(grammar_->start_of(grammar_->start()), f);
  } else {
    Frame root{};
    root.kind = Frame::kRoot;
    Config c{};
    c.phase = Phase::kValue;
    c.space = uint16_t(grammar_->most_space());  // none before the value
    c.id = grammar_->schema(0).root();
    c.frame = add_frame(root);
    add(c);
  }
}

Matcher::Mark Matcher::mark() const {
  return {uint32_t(configs_.size()), uint32_t(frames_.size()), uint32_t(words_.size()),
          uint32_t(list_.size()), uint32_t(bytes_.size())};
}

void Matcher::restore(const Mark& m) {
  configs_.resize(m.configs);
  frames_.resize(m.frames);
  words_.resize(m.words);
  if (list_.size() > m.list) list_.resize(m.list);
  bytes_.resize(m.bytes);
}

void Matcher::add(const Config& c) {
  const size_t first = marks_.back().configs, n = configs_.size();
  for (size_t i = first; i < n; ++i)
    if (configs_[i] == c) return;
  if (n - first >= kMostConfigs)
    throw BudgetError(
        "configurations", "",
        "the text can be read in more than " + std::to_string(kMostConfigs) + " ways at once");
  configs_.push_back(c);
}

uint32_t Matcher::add_frame(const Frame& f) {
  if (frames_.size() >= kMostFrames) throw BudgetError("frames", "", "the text is too long");
  frames_.push_back(f);
  return uint32_t(frames_.size() - 1);
}

bool Matcher::push(uint8_t b) {
  const uint32_t first = marks_.back().configs, last = uint32_t(configs_.size());
  marks_.push_back(mark());
  try {
    bytes_.push_back(char(b));
    entered_.clear();
    for (uint32_t i = first; i < last; ++i) {
      const Config c = configs_[i];
      advance(c, b);
    }
    if (!expected_.empty()) begin_expected();
    if (grammar_->watched()) drop_repeated(last);
  } catch (...) {
    expected_.clear();
    pop(1);
    throw;
  }
  if (configs_.size() > last) return true;
  pop(1);
  return false;
}

void Matcher::pop(size_t bytes) {
  if (bytes == 0) return;
  const Mark m = marks_[marks_.size() - bytes];
  marks_.resize(marks_.size() - bytes);
  restore(m);
}

void Matcher::advance(const Config& c, uint8_t b) {
  Langs& langs = grammar_->langs();
  const auto spaced = [&] {
    if (!grammar_->space(b) || c.space >= grammar_->most_space()) return false;
    Config next = c;
    ++next.space;
    add(next);
    return true;
  };
  switch (c.phase) {
    case Phase::kValue:
      if (!spaced()) begin_value(c, b);
      break;
    case Phase::kString:
      string_byte(c, b);
      break;
    case Phase::kNumber: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing || !langs.alive(q)) break;
      Config next = c;
      next.lang = q;
      const uint32_t parent = c.frame;
      if (frames_[parent].kind == Frame::kArray && array_of(frames_[parent]).unique &&
          !fresh(next, parent))
        break;
      if (q != kEmptyWord) add(next);
      if (langs.accepts(q)) end_value(parent);
      break;
    }
    case Phase::kLiteral: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing) break;
      if (q == kEmptyWord) {
        end_value(c.frame);
      } else {
        Config next = c;
        next.lang = q;
        add(next);
      }
      break;
    }
    case Phase::kObjectOpen:
    case Phase::kObjectNext:
      if (spaced()) break;
      if (b == '"')
        begin_key(c.frame);
      else if (b == '}' && c.phase == Phase::kObjectOpen && object_closes(frames_[c.frame]))
        end_value(frames_[c.frame].parent);
      break;
    case Phase::kKey: {
      const Frame& f = frames_[c.frame];
      const ObjectShape& s = object_of(f);
      if (b == '"' && c.escape == 0) {
        const int32_t name = s.tree[size_t(c.id)].name;
        if (name >= 0 && name_allowed(f, s, name)) end_key(c, name);
        break;
      }
      Config next = c;
      char out[4];
      int n;
      if (!decode_byte(next.escape, b, out, n)) break;
      int32_t at = c.id;
      for (int i = 0; i < n && at >= 0; ++i) {
        int32_t child = s.tree[size_t(at)].first_child;
        while (child >= 0 && s.tree[size_t(child)].byte != uint8_t(out[i]))
          child = s.tree[size_t(child)].next;
        at = child;
      }
      if (at < 0) break;
      next.id = at;
      const auto& node = s.tree[size_t(at)];
      if (next.escape == 0) {
        if (any_allowed(f, s, node.low, node.high)) add(next);
        break;
      }
      // An open escape: some allowed name goes on with a code point it can become.
      size_t depth = 0;
      for (const char x : decode_text(std::string_view(bytes_).substr(size_t(c.start)))) {
        (void)x;
        ++depth;
      }
      for (int32_t k = node.low; k < node.high; ++k) {
        const std::string& name = s.names[size_t(k)].name;
        if (name.size() <= depth || !name_allowed(f, s, k)) continue;
        if (escape_viable(langs, langs.word(std::string_view(name).substr(depth)), next.escape)) {
          add(next);
          break;
        }
      }
      break;
    }
    case Phase::kOtherKey: {
      if (b == '"' && c.escape == 0) {
        if (!langs.accepts(c.lang)) break;
        const Frame f = frames_[c.frame];
        const ObjectShape& s = object_of(f);
        const std::string key = decode_text(
            std::string_view(bytes_).substr(size_t(c.start), bytes_.size() - 1 - size_t(c.start)));
        if (!is_other_key(f, s, key)) break;
        const KeyClass& k = s.classes[c.index];
        after_member(c.frame, -1, k.goal_if, k.goal, &key);
        break;
      }
      Config next = c;
      char out[4];
      int n;
      if (!decode_byte(next.escape, b, out, n)) break;
      for (int i = 0; i < n && next.lang != kNothing; ++i)
        next.lang = langs.step(next.lang, uint8_t(out[i]));
      if (next.lang == kNothing || !langs.alive(next.lang) ||
          !escape_viable(langs, next.lang, next.escape))
        break;
      if (next.escape == 0 && next.lang != langs.text() && !langs.infinite(next.lang) &&
          !new_key(next))
        break;
      add(next);
      break;
    }
    case Phase::kAfterKey:
      if (spaced()) break;
      if (b == ':') expect(c.id, c.frame, -1);
      break;
    case Phase::kArrayOpen:
      if (spaced()) break;
      if (b == ']') {
        if (array_closes(frames_[c.frame])) end_value(frames_[c.frame].parent);
      } else {
        begin_item(c.frame, b);
      }
      break;
    case Phase::kAfterValue: {
      if (spaced()) break;
      const Frame f = frames_[c.frame];
      if (f.kind == Frame::kObject) {
        if (b == '}' && object_closes(f)) {
          end_value(f.parent);
        } else if (b == ',') {
          const ObjectShape& s = object_of(f);
          bool more = any_allowed(f, s, 0, int32_t(s.names.size()));
          for (int32_t k = 0; k < int32_t(s.classes.size()) && !more; ++k)
            more = class_allowed(f, s, k);
          if (more) {
            Config next{};
            next.phase = Phase::kObjectNext;
            next.frame = c.frame;
            add(next);
          }
        }
      } else if (b == ']') {
        if (array_closes(f)) end_value(f.parent);
      } else if (b == ',') {
        begin_item(c.frame, -1);
      }
      break;
    }
    case Phase::kRule: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing || !langs.alive(q)) break;
      if (q != kEmptyWord) {
        Config next = c;
        next.lang = q;
        add(next);
      }
      if (langs.accepts(q)) enter(c.id, c.frame);
      break;
    }
    case Phase::kDone:
      break;
  }
}

}  // namespace tokops::grammar
