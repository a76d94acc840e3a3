#include "attention/paged_decode.simt.cuh"
#include "attention/paged_decode.stream.cuh"

namespace tokops::paged {
namespace {

// Stages of 32 KiB or less, two of them or 64 KiB.
template <class T, int DP>
using Shape =
    Tile<T, DP, sizeof(T) == 2 ? (DP == 256 ? 32 : 64) : (DP == 256 ? 16 : 32), DP == 64 ? 4 : 2>;

}  // namespace

void run_simt(const Plan& plan, const Queue& q) {
  dispatch<float, __half, __nv_bfloat16>(plan.p.dtype, "paged_decode", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_int<64, 128, 256>(padded_dim(plan.p.D), [&](auto dim) {
      dispatch_int<1, 4, 8>(plan.row_tile, [&](auto tile) {
        // 16-bit rows of up to 128 dimensions are streamed.
        if constexpr (sizeof(T) == 4 || (dim == 256 && tile < 8))
          launch_decode<SimtMath<Shape<T, dim>, tile>, PageStream<Shape<T, dim>>>(plan, q);
      });
    });
  });
}

}  // namespace tokops::paged
