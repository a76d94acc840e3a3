// A shortest completion of a text with gaps.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "infill_search.h"

namespace tokops::grammar::infill {

struct Completion {
  int64_t cost = 0;  // bytes that were put in, weighted; no more than any completion needs
  std::vector<std::string> fills;  // of every gap, in order; neighbouring gaps are one
};

// Of all completions one with the fewest bytes in gaps, each counted with the weight of its gap (1
// where `weights` has none); separators between terminals don't count. The search must have
// answered "yes" just before (Knuth, "A generalization of Dijkstra's algorithm", 1977, over the
// facts that the answer rests on).
Completion shortest_completion(Search&, const std::vector<int64_t>& weights, Effort&);

}  // namespace tokops::grammar::infill
