#include "infill_text.h"

#include <algorithm>

namespace tokops::grammar::infill {
namespace {

constexpr size_t kMostPlaces = 1 << 18;

void unite(std::vector<int32_t>& set, const std::vector<int32_t>& other) {
  std::vector<int32_t> both;
  std::set_union(set.begin(), set.end(), other.begin(), other.end(), std::back_inserter(both));
  set = std::move(both);
}

}  // namespace

std::vector<Place> Text::places_of(const std::vector<Part>& parts) const {
  std::vector<Place> places;
  bool loop = false;
  const auto add = [&](int16_t label) {
    if (places.size() >= kMostPlaces) throw OutOfEffort{"length"};
    places.push_back({label, loop});
    loop = false;
  };
  for (size_t i = 0; i < parts.size();) {
    if (const auto* word = std::get_if<std::string>(&parts[i])) {
      for (char b : *word) add(terminals_->class_of[uint8_t(b)]);
      ++i;
      continue;
    }
    // Neighbouring gaps are one; empty words between them are nothing.
    int64_t at_least = 0;
    for (; i < parts.size(); ++i) {
      if (const auto* gap = std::get_if<Gap>(&parts[i])) {
        at_least += std::max(gap->at_least, 0);
      } else if (!std::get<std::string>(parts[i]).empty()) {
        break;
      }
    }
    for (int64_t k = 0; k < at_least; ++k) add(Place::kAny);
    loop = true;
  }
  add(Place::kEnd);
  std::reverse(places.begin(), places.end());
  return places;
}

int32_t Text::landing(int32_t place, const Terminal& t, int32_t state) const {
  const Place& p = places_[place];
  const int32_t follow = t.follow[state];
  if (p.loop || p.label == Place::kAny) return place * follows() + (follows() == 1 ? 0 : follow);
  if (p.label >= 0 && terminals_->forbidden[follow][p.label]) return -1;
  return place * follows();
}

// Adds where a terminal may end at a place, each state once.
void Text::land(int32_t place, const Terminal& t, const Set& set,
                std::vector<int32_t>& ends) const {
  const size_t begin = ends.size();
  for (int32_t s : set) {
    if (!t.accepting[s]) continue;
    const int32_t end = landing(place, t, s);
    if (end >= 0 && std::find(ends.begin() + begin, ends.end(), end) == ends.end())
      ends.push_back(end);
  }
}

Text::Set Text::step(const Terminal& t, const Set& set, int16_t label) const {
  Set to;
  for (int32_t s : set) {
    const int32_t* row = &t.next[size_t(s) * terminals_->classes];
    if (label >= 0) {
      if (row[label] >= 0) to.push_back(row[label]);
    } else {
      std::copy_if(row, row + terminals_->classes, std::back_inserter(to),
                   [](int32_t x) { return x >= 0; });
    }
  }
  std::sort(to.begin(), to.end());
  to.erase(std::unique(to.begin(), to.end()), to.end());
  return to;
}

Text::Set Text::reach(const Terminal& t, const Set& set) const {
  std::vector<uint64_t> bits(t.words, 0);
  for (int32_t s : set) {
    for (int32_t w = 0; w < t.words; ++w) bits[w] |= t.reach[size_t(s) * t.words + w];
  }
  Set to;
  for (int32_t w = 0; w < t.words; ++w) {
    for (uint64_t left = bits[w]; left; left &= left - 1)
      to.push_back(w * 64 + __builtin_ctzll(left));
  }
  return to;
}

// Reads on from `place` with a set of the terminal's states, at least one byte of it being read.
// What happens from a loop on is looked up, or noted there when it is known: each stretch of text
// is read once for all terminals that come by in the same states.
void Text::run(int32_t terminal, int32_t place, Set set, std::vector<int32_t>& ends,
               Effort& effort) {
  struct Pending {
    int32_t place;
    std::string key;
    std::vector<int32_t> ends;  // from its place on
  };
  const Terminal& t = terminals_->all[terminal];
  std::vector<Pending> pending;
  while (!set.empty()) {
    effort.spend(int64_t(set.size()) + 2);
    const Place& p = places_[place];
    if (p.loop) {
      unite(set, reach(t, set));
      std::string key(reinterpret_cast<const char*>(&terminal), sizeof terminal);
      key.append(reinterpret_cast<const char*>(set.data()), set.size() * sizeof(int32_t));
      auto& into = pending.empty() ? ends : pending.back().ends;
      if (const auto known = tails_[place].find(key); known != tails_[place].end()) {
        effort.spend(int64_t(known->second.size()));
        into.insert(into.end(), known->second.begin(), known->second.end());
        break;
      }
      pending.push_back({place, std::move(key), {}});
    }
    land(place, t, set, pending.empty() ? ends : pending.back().ends);
    if (p.label == Place::kEnd) break;
    set = step(t, set, p.label);
    --place;
  }
  while (!pending.empty()) {
    Pending last = std::move(pending.back());
    pending.pop_back();
    auto& into = pending.empty() ? ends : pending.back().ends;
    into.insert(into.end(), last.ends.begin(), last.ends.end());
    effort.spend(int64_t(last.ends.size()));
    hold(bytes_of(last.key, last.ends));
    tails_[last.place].emplace(std::move(last.key), std::move(last.ends));
  }
}

std::vector<int32_t> Text::ends_of(int32_t terminal, int32_t state, Effort& effort) {
  const Terminal& t = terminals_->all[terminal];
  const int32_t place = place_of(state);
  const Place& p = places_[place];
  const auto& forbidden = terminals_->forbidden[state % follows()];
  const auto first = [&](int16_t label) {
    Set to;
    for (int32_t c = 0; c < terminals_->classes; ++c) {
      if ((label < 0 || c == label) && !forbidden[c] && t.next[c] >= 0) to.push_back(t.next[c]);
    }
    std::sort(to.begin(), to.end());
    to.erase(std::unique(to.begin(), to.end()), to.end());
    return to;
  };
  std::vector<int32_t> ends;
  Set before;  // after bytes that are put in at this place
  if (p.loop) {
    before = first(Place::kAny);
    unite(before, reach(t, before));
    land(place, t, before, ends);
  }
  if (p.label == Place::kEnd) return ends;
  Set after = step(t, before, p.label);
  unite(after, first(p.label));
  run(terminal, place - 1, std::move(after), ends, effort);
  return ends;
}

void Text::find_edges(int32_t state, Effort& effort) {
  const Place& p = places_[place_of(state)];
  std::vector<Edge> edges;
  std::vector<int32_t> next;
  const auto add = [&](int32_t terminal) {
    auto ends = ends_of(terminal, state, effort);
    if (ends.empty()) return;
    next.insert(next.end(), ends.begin(), ends.end());
    edges.push_back({terminal, std::move(ends)});
  };
  if (!p.loop && p.label >= 0) {
    for (int32_t terminal : terminals_->starting[p.label]) add(terminal);
  } else if (p.loop || p.label == Place::kAny) {
    for (size_t i = 0; i < terminals_->all.size(); ++i) {
      if (terminals_->all[i].alive()) add(int32_t(i));
    }
  }
  effort.spend(int64_t(next.size()) + 1);
  std::sort(next.begin(), next.end());
  next.erase(std::unique(next.begin(), next.end()), next.end());
  State& s = states_[state];
  s.edges = std::move(edges);
  s.next = std::move(next);
  s.explored = true;
  hold(bytes_of(s));
}

void Text::explore(Effort& effort) {
  ++question_;
  const int32_t width = follows();
  std::vector<int32_t> fresh;  // not known yet whether they are live
  states_[start()].reached = question_;
  for (int32_t place = int32_t(places_.size()) - 1; place >= 0; --place) {
    std::vector<uint8_t> done(width, 0);
    for (bool more = true; more;) {
      more = false;
      for (int32_t f = 0; f < width; ++f) {
        const int32_t s = place * width + f;
        if (done[f] || states_[s].reached != question_) continue;
        done[f] = 1;
        more = true;
        if (!states_[s].explored) {
          find_edges(s, effort);
          fresh.push_back(s);
        }
        effort.spend(int64_t(states_[s].next.size()) + 1);
        for (int32_t to : states_[s].next) states_[to].reached = question_;
      }
    }
  }
  // From the end to the left; states of one place may lead to each other.
  for (size_t end = fresh.size(); end > 0;) {
    size_t begin = end;
    while (begin > 0 && place_of(fresh[begin - 1]) == place_of(fresh[end - 1])) --begin;
    for (bool more = true; more;) {
      more = false;
      for (size_t i = begin; i < end; ++i) {
        State& s = states_[fresh[i]];
        if (s.live) continue;
        effort.spend(int64_t(s.next.size()) + 1);
        s.live = final(fresh[i]) || std::any_of(s.next.begin(), s.next.end(),
                                                [&](int32_t to) { return states_[to].live; });
        more |= s.live;
      }
    }
    end = begin;
  }
}

}  // namespace tokops::grammar::infill
