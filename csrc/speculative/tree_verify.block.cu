#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify_block(const TreeVerify& p, const Queue& q) {
  launch_walk<AnyRow, Part::block>(p, q);
}

}  // namespace tokops
