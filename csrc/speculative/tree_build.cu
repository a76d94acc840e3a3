#include "common/cuda.cuh"
#include "speculative/tree_build.h"

namespace tokops {
namespace {

// One block per tree, one thread per node: it walks up to the root, and looks for the nearest later
// node of its parent and for its own first child. Parents lie in shared memory.
__global__ void tree_build_kernel(TreeBuild p) {
  __shared__ int32_t parents[kMostNodes];
  const int64_t at = int64_t(blockIdx.x) * p.N;
  for (int i = threadIdx.x; i < p.N; i += blockDim.x) parents[i] = p.parents[at + i];
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= p.N) return;
  const int parent = parent_of(parents, i);
  int first = -1, next = -1;
  for (int j = p.N - 1; j > i; --j) {
    const int other = parent_of(parents, j);
    if (other == i) first = j;
    if (other == parent && parent >= 0) next = j;
  }
  p.first_child[at + i] = first;
  p.next_sibling[at + i] = next;
  p.depth[at + i] = depth_of(parents, i);
  for (int w = 0; w < p.W; ++w) p.ancestors[(at + i) * p.W + w] = ancestor_word(parents, i, w);
}

}  // namespace

void tree_build(const TreeBuild& p, const Queue& q) {
  const unsigned threads = unsigned((p.N + 31) / 32 * 32);
  launch(tree_build_kernel, dim3(unsigned(p.B)), dim3(threads), 0, q, p);
}

}  // namespace tokops
