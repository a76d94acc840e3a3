#include "attention/paged_decode.mma.cuh"
#include "attention/paged_decode.stream.cuh"

namespace tokops::paged {

void run_mma(const Plan& plan, const Queue& q) {
  dispatch<__half, __nv_bfloat16>(plan.p.dtype, "paged_decode", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_int<64, 128, 256>(padded_dim(plan.p.D), [&](auto dim) {
      using Shape = Tile<T, dim, 64, dim == 64 ? 4 : 2>;
      launch_decode<MmaMath<Shape>, PageStream<Shape>>(plan, q);
    });
  });
}

}  // namespace tokops::paged
