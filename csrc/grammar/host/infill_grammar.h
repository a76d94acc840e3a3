// Context-free grammars over numbered symbols, and their normal form with at most two symbols on a
// right-hand side. Empty and unit right-hand sides stay, so the form grows linearly with the
// grammar, which Chomsky's does not (Lange, Leiss, "To CNF or not to CNF?", 2009).
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "rules.h"

namespace tokops::grammar::infill {

struct Production {
  int32_t head;
  std::vector<int32_t> body;
  auto operator<=>(const Production&) const = default;
};

// Symbols below `terminals` are terminals, the others up to `symbols` are heads.
struct Cfg {
  int32_t terminals = 0, symbols = 0, start = 0;
  std::vector<Production> productions;

  bool terminal(int32_t symbol) const { return symbol < terminals; }
  size_t size() const;  // symbols on all right-hand sides, and heads
};

// A front end's rules; `langs_of` gets the language of each terminal, each once. Throws
// GrammarError for a schema within rules.
Cfg cfg_of(const Rules&, std::vector<Lang>& langs_of);

// Gives the grammar one more terminal, its last, before the first terminal of a text and after
// every one.
void allow_between(Cfg&);

// Called with the name of a step and what it made.
using Observer = std::function<void(const char* step, const Cfg&)>;

// The normal form: every step keeps the language. `alive[t]`: terminal t has a word. Heads are
// numbered so that a head mostly comes after what its words may begin with. Where the start derives
// nothing, no production is left.
Cfg normal_form(Cfg, const std::vector<uint8_t>& alive, const std::vector<uint8_t>& nullable,
                const Observer& = {});

}  // namespace tokops::grammar::infill
