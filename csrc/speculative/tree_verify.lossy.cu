#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify_lossy(const TreeVerify& p, const Queue& q) {
  launch_walk<AnyRow, Part::lossy>(p, q);
}

}  // namespace tokops
