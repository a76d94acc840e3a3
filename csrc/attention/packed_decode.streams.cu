#include "attention/packed_decode.flip.cuh"

namespace tokops::paged {
namespace {

template <class T, int DP, int kTiles>
struct Kinds {
  using FullShape = Tile<T, DP, 2048 / DP, kStreamStages, WarpTeam>;
  using FullMath = FlipMath<FullShape, kTiles, __half>;
  using FullStream = WarpStream<FullShape, false>;
  using CodeShape = Tile<unsigned char, DP, kCodeKeys, kStreamStages, WarpTeam>;
  using Codes = CodeMath<CodeShape, kTiles>;
  using CodeStream = WarpStream<CodeShape, true>;
};

// A block's part is full or packed, and its warps are alike.
template <class T, int DP, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? kSmallRingBlocks
                                            : DP == 128 ? kLargeBlocks
                                                        : kStreamBlocks)
    stream_kernel(const __grid_constant__ PackedPlan plan) {
  using K = Kinds<T, DP, kTiles>;
  TOKOPS_SHARED_DYNAMIC(unsigned char, shared);
  Span span;
  const Work w = begin_block<typename K::FullStream>(plan, &span);
  if (span.end < span.begin) return;
  if (plan.parts[w.part].k.codec == Codec::full)
    decode_split<typename K::FullMath, typename K::FullStream>(plan, w, span, shared);
  else
    decode_split<typename K::Codes, typename K::CodeStream>(plan, w, span, shared);
}

}  // namespace

void run_packed_streams(const PackedPlan& plan, const Queue& q) {
  const int64_t grid = groups_of(plan) * plan.splits * plan.blocks;
  if (grid > INT32_MAX) throw std::runtime_error("packed_decode: too many rows for one launch");
  dispatch<__half, __nv_bfloat16>(plan.p.dtype, plan.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_int<64, 128>(plan.p.D, [&](auto dim) {
      dispatch_int<8, 16>(plan.row_tile, [&](auto rows) {
        using K = Kinds<T, dim, rows / 8>;
        const Layout<typename K::FullMath, typename K::FullStream> full(plan);
        const Layout<typename K::Codes, typename K::CodeStream> codes(plan);
        launch(stream_kernel<T, dim, rows / 8>, dim3(unsigned(grid)), dim3(kThreads),
               size_t(full.total > codes.total ? full.total : codes.total), q, plan);
      });
    });
  });
}

}  // namespace tokops::paged
