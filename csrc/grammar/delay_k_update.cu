#include "common/cuda.cuh"
#include "grammar/delay_k_update.h"

namespace tokops {
namespace {

constexpr int kThreads = 128;

// One warp per row, 32 scores at a time.
__global__ void __launch_bounds__(kThreads) delay_k_update_kernel(DelayKUpdate p) {
  const int64_t b = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (b >= p.B) return;
  const int lane = threadIdx.x % 32;
  const int32_t before = p.count[b];
  int64_t more = 0, first = -1;
  for (int64_t i0 = 0; i0 < p.n; i0 += 32) {
    const bool mine = i0 + lane < p.n && is_flagged(p, b * p.n + i0 + lane);
    unsigned flags = __ballot_sync(kFullWarp, mine);
    const int found = __popc(flags);
    const int64_t wanted = p.k - before - more;  // the how manieth of these is the k-th of all
    if (wanted >= 1 && wanted <= found) {
      for (int64_t skip = 1; skip < wanted; ++skip) flags &= flags - 1;
      first = i0 + __ffs(int(flags)) - 1;
    }
    more += found;
  }
  __syncwarp();  // all have read the count
  if (lane != 0) return;
  p.first[b] = int32_t(first);
  p.count[b] = counted(before, more);
  p.stop[b] = p.count[b] >= p.k;
}

}  // namespace

void delay_k_update(const DelayKUpdate& p, const Queue& q) {
  constexpr int64_t kRows = kThreads / 32;
  launch(delay_k_update_kernel, dim3(unsigned((p.B + kRows - 1) / kRows)), dim3(kThreads), 0, q, p);
}

}  // namespace tokops
