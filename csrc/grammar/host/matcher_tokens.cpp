// Tokens: accept, rollback, what must and may come next, masks of draft trees.
#include <cstring>

#include "mask_filler.h"
#include "matcher.h"

namespace tokops::grammar {

bool Matcher::complete() const {
  for (const Config* c = begin(); c != end(); ++c)
    if (c->phase == Phase::kDone) return true;
  return false;
}

// Takes back, at the end, the bytes since it was made that nobody kept.
class Matcher::Trial {
 public:
  explicit Trial(Matcher& m) : m_(m), depth_(m.marks_.size()), charged_(m.grammar_->account()) {}
  ~Trial() {
    if (!kept_) m_.pop(m_.marks_.size() - depth_);
  }
  void keep() { kept_ = true; }

 private:
  Matcher& m_;
  size_t depth_;
  Langs::Charged charged_;
  bool kept_ = false;
};

bool Matcher::accept(int32_t token) {
  const Vocabulary& v = *grammar_->vocabulary();
  if (token < 0 || token >= v.width())
    throw std::out_of_range("token " + std::to_string(token) +
                            " is not below the vocabulary's width " + std::to_string(v.width()));
  if (done_) return false;
  const uint32_t before = uint32_t(marks_.size());
  if (v.is_eos(token)) {
    if (!complete()) return false;
    done_ = true;
    history_.push_back({before, true});
    return true;
  }
  if (token >= v.size() || v.token(token).empty()) return false;
  Trial trial(*this);
  for (const char b : v.token(token))
    if (!push(uint8_t(b))) return false;
  history_.push_back({before, false});
  trial.keep();
  return true;
}

bool Matcher::allows(int32_t token) {
  if (!accept(token)) return false;
  rollback(1);
  return true;
}

bool Matcher::accept_bytes(std::string_view text, size_t* taken) {
  const uint32_t before = uint32_t(marks_.size());
  Trial trial(*this);
  size_t n = 0;
  if (!done_)
    for (const char b : text) {
      if (!push(uint8_t(b))) break;
      ++n;
    }
  if (taken) *taken = n;
  if (n < text.size() || done_) return false;
  history_.push_back({before, false});
  trial.keep();
  return true;
}

void Matcher::rollback(int32_t tokens) {
  if (tokens < 0 || size_t(tokens) > history_.size())
    throw std::out_of_range("can't take back " + std::to_string(tokens) +
                            " tokens: " + std::to_string(history_.size()) + " were accepted");
  for (int32_t i = 0; i < tokens; ++i) {
    if (history_.back().eos) done_ = false;
    pop(marks_.size() - history_.back().mark);
    history_.pop_back();
  }
}

std::string Matcher::allowed_bytes() {
  const Trial trial(*this);
  std::string out;
  for (int b = 0; b < 256; ++b)
    if (push(uint8_t(b))) {
      out.push_back(char(b));
      pop(1);
    }
  return out;
}

std::string Matcher::jump_forward() {
  const Trial trial(*this);
  std::string out;
  while (out.size() < 4096 && !done_ && !complete()) {
    // Spelling a character as an escape is no choice of text.
    const auto in_string = [&] {
      for (const Config* c = begin(); c != end(); ++c)
        if (c->phase != Phase::kString && c->phase != Phase::kKey && c->phase != Phase::kOtherKey)
          return false;
      return true;
    };
    const bool plain = in_string();
    int only = -1;
    bool escape = false;
    for (int b = 0; b < 256; ++b)
      if (push(uint8_t(b))) {
        pop(1);
        if (plain && b == '\\') {
          escape = true;
          continue;
        }
        if (only >= 0) {
          only = -2;
          break;
        }
        only = b;
      }
    if (only == -1 && escape) only = '\\';
    if (only < 0) break;
    push(uint8_t(only));
    out.push_back(char(only));
  }
  return out;
}

std::string Matcher::expected() {
  if (done_) return "nothing: the end was accepted";
  std::string out;
  const auto say = [&](const std::string& s) {
    if (out.find(s) != out.npos) return;
    if (!out.empty()) out += ", ";
    out += s;
  };
  for (const Config* c = begin(); c != end(); ++c) {
    const Frame& f = frames_[c->frame];
    switch (c->phase) {
      case Phase::kValue: {
        const Value& v = grammar_->schema(f.schema).value(c->id);
        if (v.null) say("null");
        if (v.no) say("false");
        if (v.yes) say("true");
        if (v.number != kNothing) say("a number");
        if (!v.strings.empty()) say("a string");
        if (!v.arrays.empty()) say("an array");
        if (!v.objects.empty()) say("an object");
        break;
      }
      case Phase::kString:
        say("the rest of a string");
        break;
      case Phase::kNumber:
        say("the rest of a number");
        break;
      case Phase::kLiteral:
        say("the rest of null, true or false");
        break;
      case Phase::kObjectOpen:
      case Phase::kObjectNext:
      case Phase::kKey: {
        const ObjectShape& s = object_of(f);
        int shown = 0;
        const auto& node = s.tree[size_t(c->phase == Phase::kKey ? c->id : 0)];
        for (int32_t k = node.low; k < node.high && shown < 8; ++k)
          if (name_allowed(f, s, k)) {
            say("the key \"" + s.names[size_t(k)].name + "\"");
            ++shown;
          }
        if (c->phase != Phase::kKey && !s.classes.empty()) say("another key");
        if (c->phase == Phase::kObjectOpen && object_closes(f)) say("}");
        break;
      }
      case Phase::kOtherKey:
        say("the rest of a key");
        break;
      case Phase::kAfterKey:
        say(":");
        break;
      case Phase::kArrayOpen:
        say("an item");
        if (array_closes(f)) say("]");
        break;
      case Phase::kAfterValue:
        if (f.kind == Frame::kObject) {
          if (object_closes(f)) say("}");
          const ObjectShape& s = object_of(f);
          if (any_allowed(f, s, 0, int32_t(s.names.size())) || (s.open && class_allowed(f, s, 0)))
            say(",");
          if (f.missing) {
            for (size_t k = 0; k < s.names.size(); ++k)
              if (s.names[k].required && !(words_[f.words + (k >> 6)] >> (k & 63) & 1))
                say("the key \"" + s.names[k].name + "\" (required)");
          }
        } else {
          if (array_closes(f)) say("]");
          if (f.count < array_of(f).most) say(",");
        }
        break;
      case Phase::kRule: {
        std::string some;
        for (int b = 0; b < 256 && some.size() < 40; ++b)
          if (grammar_->langs().step(c->lang, uint8_t(b)) != kNothing)
            some += b > 32 && b < 127 ? std::string(1, char(b)) + " "
                                      : "\\x" + std::string(1, "0123456789abcdef"[b >> 4]) +
                                            "0123456789abcdef"[b & 15] + " ";
        say("one of " + some);
        break;
      }
      case Phase::kDone:
        say("the end");
        break;
    }
  }
  return out;
}

void Matcher::fill(uint32_t* mask) {
  const bool unknown = unknown_item_;
  const int64_t unchecked = unchecked_;
  const Trial trial(*this);
  try {
    MaskFiller(*this, mask).run();
  } catch (...) {
    unknown_item_ = unknown;
    unchecked_ = unchecked;
    throw;
  }
}

void fill_tree(Matcher& m, const int32_t* parents, const int32_t* tokens, int32_t n,
               uint32_t* mask) {
  const int32_t words = m.grammar().vocabulary()->words();
  struct Path {  // nodes that are accepted now
    Matcher& m;
    std::vector<int32_t> nodes;
    void back(size_t keep) {
      m.rollback(int32_t(nodes.size() - keep));
      nodes.resize(keep);
    }
    ~Path() { back(0); }
  } path{m, {}};
  std::vector<bool> dead(size_t(n), false);
  for (int32_t i = 0; i < n; ++i) {
    uint32_t* row = mask + size_t(i) * size_t(words);
    std::vector<int32_t> want;
    for (int32_t k = i; k >= 0; k = parents[k]) want.insert(want.begin(), k);
    size_t same = 0;
    while (same < path.nodes.size() && same < want.size() && path.nodes[same] == want[same]) ++same;
    path.back(same);
    bool ok = true;
    for (size_t k = same; k < want.size() && ok; ++k) {
      ok = !dead[size_t(want[k])] && tokens[want[k]] != -1 && m.accept(tokens[want[k]]);
      if (ok)
        path.nodes.push_back(want[k]);
      else
        dead[size_t(i)] = true;
    }
    if (ok)
      m.fill(row);
    else
      std::memset(row, 0, size_t(words) * 4);
  }
}

}  // namespace tokops::grammar
