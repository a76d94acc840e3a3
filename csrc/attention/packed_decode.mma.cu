#include "attention/packed_decode.stream.cuh"
#include "attention/paged_decode.mma.cuh"

namespace tokops::paged {

void run_packed_mma(const PackedPlan& plan, const Queue& q) {
  dispatch_int<64, 128, 256>(padded_dim(plan.p.D), [&](auto dim) {
    using Shape = Tile<__half, dim, dim == 256 ? 32 : 64, kMaxStages>;
    launch_decode<MmaMath<Shape>, PackedStream<Shape>>(plan, q);
  });
}

}  // namespace tokops::paged
