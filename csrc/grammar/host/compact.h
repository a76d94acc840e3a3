// Small languages as explicit automata.
#pragma once
#include "lang.h"

namespace tokops::grammar {

// The same language as an automaton without dead ends, where it has at most `most` states; else as
// it is. What is made of complements and intersections is otherwise asked at every step whether
// anything is left of it.
Lang compact(Langs&, Lang, int32_t most = 250);

// Whether, wherever one is in a word of the language, every number of further code points from the
// fewest on is possible, so that a bound on the length can be counted beside it. False where it
// can't be said.
bool evenly_long(Langs&, Lang, int32_t most = 1000);

// The fewest code points of a word (bytes that continue one that has begun are not counted). The
// language is alive.
int32_t fewest_chars(Langs&, Lang);

// The same where the next character has been begun as an escape: see text.h.
int32_t fewest_after_escape(Langs&, Lang, uint32_t escape);

// Whether every beginning of a word is that of endlessly many. False where it can't be said.
bool endless(Langs&, Lang, int32_t most = 1000);

}  // namespace tokops::grammar
