#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify_other(const TreeVerify& p, const Queue& q) {
  launch_walk<AnyRow, Part::other>(p, q);
}

}  // namespace tokops
