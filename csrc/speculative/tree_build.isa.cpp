#include "speculative/tree_build.h"

#include "common/isa.h"

namespace tokops {
namespace {

// One pass: a parent stands before its children.
void build_row(const TreeBuild& p, int64_t b) {
  const int32_t* parents = p.parents + b * p.N;
  int32_t *first = p.first_child + b * p.N, *next = p.next_sibling + b * p.N;
  int32_t* depth = p.depth + b * p.N;
  uint64_t* words = p.ancestors + b * p.N * p.W;
  for (int i = 0; i < p.N; ++i) {
    const int parent = parent_of(parents, i);
    first[i] = next[i] = -1;
    depth[i] = parent < 0 ? 0 : depth[parent] + 1;
    for (int w = 0; w < p.W; ++w) words[i * p.W + w] = parent < 0 ? 0 : words[parent * p.W + w];
    words[i * p.W + i / 64] |= uint64_t(1) << (i % 64);
  }
  for (int i = p.N - 1; i > 0; --i) {
    const int parent = parent_of(parents, i);
    if (parent < 0) continue;
    next[i] = first[parent];
    first[parent] = i;
  }
}

void tree_build_copy(const TreeBuild& p, const Queue& q) {
  q.parallel(p.B, 16, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) build_row(p, b);
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(tree_build, tree_build_copy, TreeBuild)
