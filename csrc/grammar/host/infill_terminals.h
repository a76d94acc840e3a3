// Terminals as small automata over classes of bytes.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lang.h"

namespace tokops::grammar::infill {

// What counts as one token of the text.
enum class Lexer {
  kUnion,    // any splitting into terminals
  kLongest,  // no terminal before a byte that would make it another, longer one; literals win over
             // patterns
};

// A minimal automaton; from every state a word leads on.
struct Terminal {
  int32_t states = 0;              // 0: no word
  std::vector<int32_t> next;       // [states, classes], -1: none
  std::vector<uint8_t> accepting;  // [states]; the start is state 0
  int32_t words = 0;
  std::vector<uint64_t> reach;  // [states, words] of bits: where at least one byte leads
  std::vector<int32_t> follow;  // [states]: what may not come next if a word ends there, a row of
                                // Terminals::forbidden

  bool alive() const { return states > 0; }
  bool nullable() const { return alive() && accepting[0]; }
};

struct Terminals {
  std::array<uint8_t, 256> class_of{};
  int32_t classes = 1;
  std::vector<uint8_t> spelled;  // [classes]: a byte of each, printable where there is one
  std::vector<Terminal> all;
  std::vector<std::vector<uint8_t>>
      forbidden;  // [follows][classes]: bytes that may not come next; row 0: none
  std::vector<std::vector<int32_t>> starting;  // [classes]: terminals with a word that begins so
  // A class with a byte that may be put between any two terminals and takes away what the first
  // forbids, or -1.
  int32_t separator = -1;
};

// `between`: the terminal that stands after every other one, or -1. `not_before`: bytes that may
// not follow a terminal whose only word is the key. Throws BudgetError where the automata would
// have more than 65,536 states, GrammarError for a key that is no terminal.
Terminals compile_terminals(Langs&, std::vector<Lang>, Lexer,
                            const std::map<std::string, std::string>& not_before, int32_t between);

}  // namespace tokops::grammar::infill
