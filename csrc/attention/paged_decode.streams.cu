#include "attention/paged_decode.flip.cuh"
#include "attention/paged_decode.stream.cuh"

namespace tokops::paged {

// A warp has 8 KiB of keys and values at work and as many on their way, twelve warps a
// multiprocessor: more than memory takes to answer.
void run_streams(const Plan& plan, const Queue& q) {
  dispatch<__half, __nv_bfloat16>(plan.p.dtype, "paged_decode", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_int<64, 128>(padded_dim(plan.p.D), [&](auto dim) {
      using Shape = Tile<T, dim, 2048 / dim, 2, WarpTeam>;
      if (plan.row_tile == 8)
        launch_decode<FlipMath<Shape, 1>, PageStream<Shape>>(plan, q);
      else
        launch_decode<FlipMath<Shape, 2>, PageStream<Shape>>(plan, q);
    });
  });
}

}  // namespace tokops::paged
