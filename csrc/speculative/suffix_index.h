// A suffix automaton over the tokens of one sequence, in plain int32 arrays: each state stands for
// the substrings that end at the same places, and holds where they end first and last and how often
// they occur. Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985).
#pragma once
#include <cstdint>

namespace tokops {

// Occurrences are counted of substrings up to this long: a new token then changes at most as many
// states, also where one token is repeated for ever.
inline constexpr int32_t kLongestCounted = 65;

struct SuffixHead {
  int32_t tokens, states, edges;  // in use; states besides the root, which is state 0
  int32_t whole;                  // the state of the whole text
  int32_t recent;                 // the state of the last tokens, as many as are counted
};

struct SuffixState {
  int32_t length;  // of its longest substring; its shortest is one longer than the link's longest
  int32_t link;    // the state of the longest suffix that also ends elsewhere
  int32_t count, last, first;  // occurrences, and tokens up to the end of the last and the first
  int32_t token, target;       // the first edge out of it; target 0: there is none
  int32_t edges;               // 1 + index of the next edge, or 0
};

// An edge besides the first of its state. Edges have places in a hash table, by state and token.
struct SuffixEdge {
  int32_t state, token, target;
  int32_t next;  // 1 + index of the state's next edge, or 0
};

// Room for C tokens: C of text and of edges, 2 C states, and a power of two >= 2 C of places.
struct SuffixIndex {
  SuffixHead* head;
  int32_t* text;
  SuffixState* states;
  SuffixEdge* edges;
  int32_t* places;  // 1 + index of an edge, or 0
  int32_t place_bits;

  // The place of an edge, or the empty one where it would be.
  int32_t* place(int32_t state, int32_t token) const {
    const uint64_t key = uint64_t(uint32_t(state)) << 32 | uint32_t(token);
    const uint64_t mask = (uint64_t(1) << place_bits) - 1;
    for (uint64_t i = key * 0x9e3779b97f4a7c15u >> (64 - place_bits);; i = (i + 1) & mask) {
      if (places[i] == 0) return &places[i];
      const SuffixEdge& e = edges[places[i] - 1];
      if (e.state == state && e.token == token) return &places[i];
    }
  }

  // Where the target of an edge is kept, or null where there is no such edge.
  int32_t* find(int32_t state, int32_t token) const {
    SuffixState& s = states[state];
    if (s.target != 0 && s.token == token) return &s.target;
    if (s.edges == 0) return nullptr;
    const int32_t at = *place(state, token);
    return at == 0 ? nullptr : &edges[at - 1].target;
  }

  // Calls f(token, target) for every edge of a state.
  template <class F>
  void each_edge(int32_t state, const F& f) const {
    const SuffixState& s = states[state];
    if (s.target == 0) return;
    f(s.token, s.target);
    for (int32_t e = s.edges; e != 0; e = edges[e - 1].next)
      f(edges[e - 1].token, edges[e - 1].target);
  }

  // How many of the last tokens `head->recent` stands for.
  int32_t recent_length() const {
    return head->tokens < kLongestCounted ? head->tokens : kLongestCounted;
  }

  // The state of the last `length` tokens of a substring that is that long or one longer.
  int32_t shortened(int32_t state, int32_t length) const {
    const int32_t link = states[state].link;
    return states[link].length >= length ? link : state;
  }

  void append(int32_t token) {
    const int32_t length = head->tokens + 1, fresh = ++head->states;
    states[fresh] = {length, 0, 0, length, length, 0, 0, 0};
    int32_t p = head->whole;
    int32_t* edge = find(p, token);
    while (edge == nullptr) {
      add_edge(p, token, fresh);
      if (p == 0) break;
      p = states[p].link;
      edge = find(p, token);
    }
    if (edge != nullptr) states[fresh].link = state_behind(p, token, edge);
    head->whole = fresh;
    text[head->tokens] = token;
    count(token);
  }

 private:
  void add_edge(int32_t state, int32_t token, int32_t target) {
    SuffixState& s = states[state];
    if (s.target == 0) {
      s.token = token;
      s.target = target;
      return;
    }
    int32_t* at = place(state, token);
    edges[head->edges++] = {state, token, target, s.edges};
    s.edges = *at = head->edges;
  }

  // The state of p's longest substring with `token` behind it. Others that ended at the same places
  // so far, and are longer, no longer do: their state is split.
  int32_t state_behind(int32_t p, int32_t token, int32_t* edge) {
    const int32_t q = *edge;
    if (states[q].length == states[p].length + 1) return q;
    const int32_t half = ++head->states;
    states[half] = states[q];
    states[half].length = states[p].length + 1;
    states[half].target = states[half].edges = 0;
    each_edge(q, [&](int32_t t, int32_t target) { add_edge(half, t, target); });
    states[q].link = half;
    while (edge != nullptr && *edge == q) {
      *edge = half;
      if (p == 0) break;
      p = states[p].link;
      edge = find(p, token);
    }
    return half;
  }

  // Counts the suffixes that end with a token just appended. The state of the last tokens may have
  // been split since; both halves have the same edges.
  void count(int32_t token) {
    const int32_t state = *find(head->recent, token), length = ++head->tokens;
    head->recent = shortened(state, recent_length());
    for (int32_t s = head->recent; s != 0; s = states[s].link) {
      ++states[s].count;
      states[s].last = length;
    }
  }
};

}  // namespace tokops
