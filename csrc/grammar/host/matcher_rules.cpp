// Calls of rules, as in Earley's algorithm: one node for a rule and the place where it begins.
#include "matcher.h"

namespace tokops::grammar {

void Matcher::enter(int32_t state, uint32_t call) {
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
        if (grammar_->langs().accepts(e.symbol.id)) enter(e.next, call);
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
          enter(grammar_->start_of(e.symbol.id), node);
        else if (frames_[node].returned)
          enter(e.next, call);
        break;
      }
    }
  }
  if (st.ends) return_from(call);
}

void Matcher::return_from(uint32_t call) {
  if (frames_[call].start == int32_t(bytes_.size())) frames_[call].returned = true;
  for (uint32_t i = frames_[call].list; i; i = list_[i - 1].next) {
    const int32_t state = list_[i - 1].state;
    if (state < 0) {
      Config c{};
      c.phase = Phase::kDone;
      add(c);
    } else {
      enter(state, list_[i - 1].frame);
    }
  }
}

}  // namespace tokops::grammar
