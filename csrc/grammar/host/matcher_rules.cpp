// Calls of rules, as in Earley's algorithm: one node for a rule and the place where it begins.
#include "matcher.h"

namespace tokops::grammar {

void Matcher::enter(int32_t state, uint32_t call) {
  agenda_.assign(1, {state, call});
  while (!agenda_.empty()) {
    const auto [s, c] = agenda_.back();
    agenda_.pop_back();
    go_on(s, c);
  }
}

void Matcher::go_on(int32_t state, uint32_t call) {
  for (const auto& [s, c] : entered_)
    if (s == state && c == call) return;
  entered_.emplace_back(state, call);
  const Grammar::State& st = grammar_->state(state);
  for (const Grammar::Edge& e : st.edges) {
    switch (e.symbol.kind) {
      case Symbol::kLang: {
        if (e.symbol.id != kEmptyWord && e.symbol.id != kNothing) {
          Config c{};
          c.phase = Phase::kRule;
          c.lang = e.symbol.id;
          c.id = e.next;
          c.frame = call;
          add(c);
        }
        if (grammar_->langs().accepts(e.symbol.id)) agenda_.emplace_back(e.next, call);
        break;
      }
      case Symbol::kSchema: {
        Frame f{};
        f.kind = Frame::kSchema;
        f.schema = uint16_t(e.symbol.id);
        f.parent = call;
        f.missing = e.next;
        Config c{};
        c.phase = Phase::kValue;
        c.space = uint16_t(grammar_->most_space());
        c.id = grammar_->schema(e.symbol.id).root();
        c.frame = add_frame(f);
        add(c);
        break;
      }
      case Symbol::kRule: {
        uint32_t node = 0;
        bool known = false;
        for (size_t i = frames_.size(); i-- > marks_.back().frames && !known;)
          if (frames_[i].kind == Frame::kCall && frames_[i].rule == e.symbol.id &&
              frames_[i].start == int32_t(bytes_.size())) {
            node = uint32_t(i);
            known = true;
          }
        if (known) {
          bool have = false;
          for (uint32_t i = frames_[node].list; i && !have; i = list_[i - 1].next)
            have = list_[i - 1].frame == call && list_[i - 1].state == e.next;
          if (have) break;
        } else {
          Frame f{};
          f.kind = Frame::kCall;
          f.rule = e.symbol.id;
          f.start = int32_t(bytes_.size());
          node = add_frame(f);
        }
        list_.push_back({frames_[node].list, call, e.next, ""});
        frames_[node].list = uint32_t(list_.size());
        if (!known)
          agenda_.emplace_back(grammar_->start_of(e.symbol.id), node);
        else if (frames_[node].returned)
          agenda_.emplace_back(e.next, call);
        break;
      }
    }
  }
  if (st.ends) return_from(call);
}

// The call whose end is the end of this one: callers that do nothing further are passed over, or
// the end of a list that is written right-recursive would end everything before it, at every byte.
uint32_t Matcher::top_of(uint32_t call) {
  const auto only_ends = [&](uint32_t f) -> int64_t {  // its caller
    // Where a rule begins at this byte, callers may still come.
    if (frames_[f].start == int32_t(bytes_.size()) || !frames_[f].list) return -1;
    const Listed& caller = list_[frames_[f].list - 1];
    if (caller.next || caller.state < 0) return -1;
    const Grammar::State& st = grammar_->state(caller.state);
    return st.ends && st.edges.empty() ? int64_t(caller.frame) : -1;
  };
  uint32_t top = call;
  while (true) {
    if (frames_[top].order >= 0) {
      top = uint32_t(frames_[top].order);
      break;
    }
    const int64_t next = only_ends(top);
    if (next < 0) break;
    top = uint32_t(next);
  }
  // Callers began before this byte, or at it, where they may still be popped with it.
  for (uint32_t f = call; f != top && frames_[f].order < 0;) {
    const auto next = uint32_t(only_ends(f));
    if (frames_[top].start < int32_t(bytes_.size())) frames_[f].order = int32_t(top);
    f = next;
  }
  return top;
}

void Matcher::return_from(uint32_t call) {
  if (frames_[call].start == int32_t(bytes_.size())) frames_[call].returned = true;
  call = top_of(call);
  for (uint32_t i = frames_[call].list; i; i = list_[i - 1].next) {
    const int32_t state = list_[i - 1].state;
    if (state < 0) {
      Config c{};
      c.phase = Phase::kDone;
      add(c);
    } else {
      agenda_.emplace_back(state, list_[i - 1].frame);
    }
  }
}

}  // namespace tokops::grammar
