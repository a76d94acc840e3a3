#include "speculative/tree_verify.cuh"

namespace tokops {

void tree_verify(const TreeVerify& p, const Queue& q) {
  switch (part_of(p.mode)) {
    case Part::drawn:
      return tree_verify_drawn(p, q);
    case Part::block:
      return tree_verify_block(p, q);
    case Part::lossy:
      return tree_verify_lossy(p, q);
    default:
      break;
  }
  if (!p.logits) return launch_walk<RowOf<float, true>, Part::simple>(p, q);
  dispatch<float, __half, __nv_bfloat16>(p.dtype, "tree_verify", [&](auto tag) {
    using Row = RowOf<typename decltype(tag)::type, false>;
    const auto one = tree_verify_kernel<Row, Part::simple>;
    const auto cluster = tree_verify_kernel<Row, Part::simple, kClusterBlocks>;
    const bool many = wants_cluster(reinterpret_cast<const void*>(cluster), p.B, p.V);
    const unsigned blocks = many ? kClusterBlocks : 1;
    launch_as(Start::in_order, blocks, many ? cluster : one, dim3(unsigned(p.B) * blocks),
              dim3(kLawThreads), 0, q, p);
  });
}

}  // namespace tokops
