#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify_drawn(const TreeVerify& p, const Queue& q) {
  launch_walk<AnyRow, Part::drawn>(p, q);
}

}  // namespace tokops
