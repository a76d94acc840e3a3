#include "common/cuda.cuh"
#include "grammar/multiset_mask.h"

namespace tokops {
namespace {

constexpr int kTokens = 256;  // of a block, one per thread
constexpr int kRows = 8;      // whose rooms are held at a time
constexpr uint32_t kFits = 0x01000100u;

// Bytes 0 and 2 of x, or 1 and 3, in halves of 16 bits.
__device__ uint32_t halves(uint32_t x, int odd) { return x >> 8 * odd & 0x00ff00ffu; }

// What effects are taken from: in a half, bit 8 of `room - effect` is set where the letter fits.
// Effects are there with 128 added; letters beyond A always fit.
__device__ uint32_t room_half(const MultisetMask& p, int64_t row, int a) {
  if (a >= p.A) return 0x1ffu;
  const int room = room_of(p, row, a) + 128;
  return room < 0 ? 0xffu : 0x100u + uint32_t(room);
}

// One block per 256 tokens, whose effects are read once for all rows. `stride`: words between
// tokens in shared memory, odd so that the threads of a warp meet different banks.
__global__ void __launch_bounds__(kTokens) multiset_mask_kernel(MultisetMask p, int stride) {
  TOKOPS_SHARED_DYNAMIC(uint32_t, effects);
  __shared__ uint32_t rooms[kRows][2][kMostLetters / 4];
  const int words = (p.A + 3) / 4, me = threadIdx.x;
  const int64_t first = int64_t(blockIdx.x) * kTokens, width = (p.V + 31) / 32;
  const int count = int(min(p.V - first, int64_t(kTokens)));
  for (int i = me; i < kTokens * stride; i += kTokens) effects[i] = 0;
  __syncthreads();
  uint8_t* bytes = reinterpret_cast<uint8_t*>(effects);
  for (int i = me; i < count * p.A; i += kTokens)
    bytes[i / p.A * stride * 4 + i % p.A] = uint8_t(p.effect[first * p.A + i] + 128);
  for (int64_t row0 = 0; row0 < p.B; row0 += kRows) {
    const int rows = int(min(p.B - row0, int64_t(kRows)));
    __syncthreads();
    for (int i = me; i < rows * 2 * words; i += kTokens) {
      const int word = i % words, odd = i / words % 2, r = i / words / 2, a = 4 * word + odd;
      rooms[r][odd][word] = room_half(p, row0 + r, a) | room_half(p, row0 + r, a + 2) << 16;
    }
    __syncthreads();
    for (int r = 0; r < rows; ++r) {
      uint32_t fit = kFits;
      for (int w = 0; w < words; ++w) {
        const uint32_t x = effects[me * stride + w];
        fit &= (rooms[r][0][w] - halves(x, 0)) & (rooms[r][1][w] - halves(x, 1));
      }
      const unsigned bits = __ballot_sync(kFullWarp, me < count && fit == kFits);
      if (me % 32 == 0 && me < count) p.out[(row0 + r) * width + (first + me) / 32] = int32_t(bits);
    }
  }
}

}  // namespace

void multiset_mask(const MultisetMask& p, const Queue& q) {
  const int stride = (p.A + 3) / 4 | 1;
  launch(multiset_mask_kernel, dim3(unsigned((p.V + kTokens - 1) / kTokens)), dim3(kTokens),
         size_t(kTokens) * size_t(stride) * 4, q, p, stride);
}

}  // namespace tokops
