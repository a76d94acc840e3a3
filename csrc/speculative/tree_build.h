// Links, depths and ancestor words of token trees, from the parent of every node.
#pragma once
#include "common/backend.h"

namespace tokops {

constexpr int32_t kMostNodes = 1024;

struct TreeBuild {
  const int32_t* parents;  // [B, N]: parents[0] = -1, parents[i] < i; -1 further on is padding
  int32_t *first_child, *next_sibling, *depth;  // [B, N]
  uint64_t* ancestors;                          // [B, N, W]
  int32_t B, N, W;
};

void tree_build(const TreeBuild& p,
                const Queue& q);  // tree_build.isa.cpp on the CPU, .cu on CUDA

namespace {  // headers of .isa.cpp files must not emit shared symbols

// A node's parent, or -1: what is not before the node is no parent.
TOKOPS_HD int parent_of(const int32_t* parents, int i) {
  const int parent = parents[i];
  return parent >= 0 && parent < i ? parent : -1;
}

// A node's word w: itself and all above it.
TOKOPS_HD uint64_t ancestor_word(const int32_t* parents, int i, int w) {
  uint64_t bits = 0;
  for (int a = i; a >= 0; a = parent_of(parents, a))
    if (a / 64 == w) bits |= uint64_t(1) << (a % 64);
  return bits;
}

TOKOPS_HD int depth_of(const int32_t* parents, int i) {
  int depth = 0;
  for (int a = parent_of(parents, i); a >= 0; a = parent_of(parents, a)) ++depth;
  return depth;
}

}  // namespace
}  // namespace tokops
