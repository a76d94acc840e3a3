#include "attention/packed_decode.stream.cuh"
#include "attention/paged_decode.simt.cuh"

namespace tokops::paged {
namespace {

// Keys and values of a tile are 32 KiB or less.
template <class T, int DP>
using Shape =
    Tile<T, DP, sizeof(T) == 2 ? (DP == 256 ? 32 : 64) : (DP == 256 ? 16 : 32), kMaxStages>;

template <class T>
void run(const PackedPlan& plan, const Queue& q) {
  dispatch_int<64, 128, 256>(padded_dim(plan.p.D), [&](auto dim) {
    dispatch_int<1, 4, 8>(plan.row_tile, [&](auto tile) {
      if constexpr (sizeof(T) == 4 || tile < 8)
        launch_decode<SimtMath<Shape<T, dim>, tile>, PackedStream<Shape<T, dim>>>(plan, q);
    });
  });
}

}  // namespace

void run_packed_simt(const PackedPlan& plan, const Queue& q) {
  if (plan.p.dtype == DType::f32)
    run<float>(plan, q);
  else
    run<__half>(plan, q);
}

}  // namespace tokops::paged
