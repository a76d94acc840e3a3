#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify(const TreeVerify& p, const Queue& q) {
  switch (part_of(p.mode)) {
    case Part::drawn:
      return tree_verify_drawn(p, q);
    case Part::other:
      return tree_verify_other(p, q);
    default:
      break;
  }
  if (!p.logits) return launch_walk<RowOf<float, true>, Part::simple>(p, q);
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "tree_verify", [&](auto tag) {
    launch_walk<RowOf<typename decltype(tag)::type, false>, Part::simple>(p, q);
  });
}

}  // namespace tokops
