// A text with gaps as an automaton over terminals: every way of lexing all its completions, at
// once.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "infill_effort.h"
#include "infill_terminals.h"

namespace tokops::grammar::infill {

struct Gap {
  int32_t at_least = 0;  // bytes
};
using Part = std::variant<std::string, Gap>;

// A place between two bytes of the text. Any bytes may be put in where `loop` holds.
struct Place {
  static constexpr int16_t kAny = -1, kEnd = -2;
  int16_t label;  // what comes next: the class of a byte of the text, one byte of a gap, or the end
  bool loop;
  bool operator==(const Place&) const = default;
};

// Places are counted from the end, so that a place and all that follows from it stay what they are
// when the text changes further left. A terminal may end at a place whose next byte is not known
// and still forbid some: such a place has a state for each set of forbidden bytes. Where the
// grammar has a separator one state is enough: whatever is forbidden, a separator put in there
// allows it.
class Text {
 public:
  struct Edge {
    int32_t terminal;
    std::vector<int32_t> ends;  // states, each once
  };
  struct State {
    bool explored = false, live = false;
    int32_t reached = 0;          // the last question that came by
    int32_t id = -1;              // bit of this state in the rows of the search; -1: none yet
    std::vector<Edge> edges;      // of terminals that are read from here
    std::vector<int32_t> next;    // all ends of edges, each once
    std::vector<uint64_t*> rows;  // [symbols]: kept by the search
  };

  explicit Text(const Terminals& terminals) : terminals_(&terminals) {}

  // Takes a text, and returns how many places at its end are as they were. States of all others are
  // gone; `gone` is called for each of them first. Throws OutOfEffort where the text has more than
  // 1 << 18 places, and `explore` where what is kept passes 256 MiB.
  template <typename Gone>
  int32_t set(const std::vector<Part>& parts, Gone&& gone) {
    auto places = places_of(parts);
    size_t same = 0;
    while (same < places.size() && same < places_.size() && places[same] == places_[same]) ++same;
    for (size_t s = same * follows(); s < states_.size(); ++s) {
      gone(states_[s]);
      held_ -= bytes_of(states_[s]);
    }
    for (size_t p = same; p < tails_.size(); ++p) {
      for (const auto& [key, ends] : tails_[p]) held_ -= bytes_of(key, ends);
    }
    places_ = std::move(places);
    states_.resize(same * follows());
    states_.resize(places_.size() * follows());
    tails_.resize(same);
    tails_.resize(places_.size());
    return int32_t(same);
  }

  // Finds the states that can be reached, and whether the end can be reached from them.
  void explore(Effort&);

  int32_t follows() const {
    return terminals_->separator >= 0 ? 1 : int32_t(terminals_->forbidden.size());
  }
  int32_t start() const { return (int32_t(places_.size()) - 1) * follows(); }
  int32_t place_of(int32_t state) const { return state / follows(); }
  bool final(int32_t state) const { return place_of(state) == 0; }
  bool reached(int32_t state) const { return states_[state].reached == question_; }
  State& at(int32_t state) { return states_[state]; }
  const State& at(int32_t state) const { return states_[state]; }
  const std::vector<Place>& places() const { return places_; }  // the end first
  int32_t states() const { return int32_t(states_.size()); }
  const Terminals& terminals() const { return *terminals_; }

  // Where a terminal that ends at a place in one of its states leads to, or -1 where it forbids the
  // next byte.
  int32_t landing(int32_t place, const Terminal&, int32_t state) const;

 private:
  using Set = std::vector<int32_t>;  // of a terminal's states, ascending

  static size_t bytes_of(const State& s) {
    size_t bytes = s.next.size() * sizeof(int32_t);
    for (const Edge& e : s.edges) bytes += sizeof(Edge) + e.ends.size() * sizeof(int32_t);
    return bytes;
  }
  static size_t bytes_of(const std::string& key, const std::vector<int32_t>& ends) {
    return key.size() + ends.size() * sizeof(int32_t) + 64;
  }
  void hold(size_t bytes) {
    held_ += bytes;
    if (held_ > kMostHeld) throw OutOfEffort{"memory"};
  }

  std::vector<Place> places_of(const std::vector<Part>&) const;
  void find_edges(int32_t state, Effort&);
  std::vector<int32_t> ends_of(int32_t terminal, int32_t state, Effort&);
  void run(int32_t terminal, int32_t place, Set, std::vector<int32_t>& ends, Effort&);
  void land(int32_t place, const Terminal&, const Set&, std::vector<int32_t>& ends) const;
  Set step(const Terminal&, const Set&, int16_t label) const;
  Set reach(const Terminal&, const Set&) const;

  const Terminals* terminals_;
  std::vector<Place> places_;
  std::vector<State> states_;  // [places, follows]
  // Of each place with a loop: where a terminal can end that comes by in some states.
  std::vector<std::unordered_map<std::string, std::vector<int32_t>>> tails_;
  static constexpr size_t kMostHeld = size_t(256) << 20;
  size_t held_ = 0;
  int32_t question_ = 0;
};

}  // namespace tokops::grammar::infill
