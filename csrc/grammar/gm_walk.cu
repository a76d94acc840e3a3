#include "common/cuda.cuh"
#include "grammar/gm_walk.h"

namespace tokops {
namespace {

constexpr int kThreads = 256;
constexpr int kRowGroups = 4;  // row b goes to group b % kRowGroups

// One block per part of a row and group of rows; it is done at once where all its rows have masks.
// A thread walks a token from its first byte: most die there, the ways of the others are short, and
// the entries that they read are those of their neighbours.
__global__ void __launch_bounds__(kThreads) gm_walk_kernel(GmWalk p) {
  __shared__ uint8_t todo[kThreads];
  const int me = threadIdx.x, lane = me % 32;
  const int64_t part = blockIdx.x, groups = gridDim.y;
  for (int64_t row0 = blockIdx.y; row0 < p.B; row0 += kThreads * groups) {
    const int64_t mine = row0 + me * groups;
    const bool walk = mine < p.B && has_no_mask(p, mine);
    todo[me] = walk;
    if (!__syncthreads_or(walk)) continue;
    for (int i = 0; i < kThreads; ++i) {
      if (!todo[i]) continue;
      const int64_t b = row0 + i * groups;
      bool known = true;
      for (int64_t j = me / 32; j < kWalkWords && part * kWalkWords + j < p.W; j += kThreads / 32) {
        const int64_t w = part * kWalkWords + j;
        const Walked walked = walk_token(p, b, w * 32 + lane);
        known &= walked.known;
        const unsigned bits = __ballot_sync(kFullWarp, walked.allowed);
        if (lane == 0) p.out[b * p.W + w] = int32_t(bits);
      }
      const int unknown = __syncthreads_or(!known);
      if (me == 0) p.left[b * p.parts + part] = unknown != 0;
    }
    __syncthreads();
  }
}

}  // namespace

void gm_walk(const GmWalk& p, const Queue& q) {
  const int64_t groups = p.B < kRowGroups ? p.B : kRowGroups;
  launch(gm_walk_kernel, dim3(unsigned(p.parts), unsigned(groups)), dim3(kThreads), 0, q, p);
}

}  // namespace tokops
