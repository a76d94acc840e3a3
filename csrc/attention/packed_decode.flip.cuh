// Attention over packed parts on tensor cores: codes go from shared memory straight into operands.
#pragma once
#include "attention/packed_decode.warp.cuh"
#include "attention/paged_decode.flip.cuh"

namespace tokops::paged {
namespace {

// Attention over a tile of codes on tensor cores, operands exchanged as in FlipMath, of float16.
// The order of dimensions and of keys within a product is free, and such that a lane finds what it
// feeds in words of codes: with (g, t) = (lane / 4, lane % 4), it has quads t and 4 + t of keys
// key_at(g) and key_at(g) + 8 in every block of 32 dimensions, and of keys t, 4 + t, 8 + t and 12 +
// t quads i and 4 + i, i = g % 4, of every second block.
template <class Shape_, int kTiles, bool kExact_ = false>
struct CodeMath {
  using Shape = Shape_;
  using Exact = CodeMath<Shape, kTiles, true>;
  using Q = __half;
  static constexpr bool kExact = kExact_, kHeld = true;
  static constexpr int RT = 8 * kTiles, DP = Shape::DP, kSub = 16, kBlocksPerSm = kStreamBlocks;
  static constexpr int kBlocks = DP / kPackBlock;
  static constexpr int kBehindRows = kBlocks * RT * int(sizeof(float));  // q_sums

  const PackedPlan& plan;
  const Work& w;
  const Row* rows;
  const __half* queries;  // [rows, DP], zero where there is no row
  const Grid* key_grids;
  const GridPair* value_grids;
  unsigned lane;
  uint32_t held[kTiles][DP / 16][2];
  float* q_sums;  // [key groups, RT]: queries summed over the dimensions that share a scale
  // Of every 64 dimensions, one sum more: what zeros, and the offset of codes, have added up to.
  static constexpr int kSums = DP / 16;
  FlipSums<kTiles, kSums + DP / 64> sums;

  template <class Stream>
  __device__ CodeMath(const PackedPlan& plan, const Work& w, __half* q, const Row* rows,
                      const Stream& stream)
      : plan(plan),
        w(w),
        rows(rows),
        queries(q),
        q_sums(reinterpret_cast<float*>(const_cast<Row*>(rows + RT))),
        key_grids(stream.key_grids()),
        value_grids(stream.value_grids()),
        lane(threadIdx.x % 32) {
    for (int i = threadIdx.x; i < RT * DP; i += kThreads) {
      const int r = i / DP;
      q[i] = from_float<__half>(r < w.rows() ? stream.query(r, i % DP) : 0.f);
    }
  }

  // Row r of a product's eight keys is this one of them.
  __device__ static unsigned key_at(unsigned r) { return r / 2 + r % 2 * 4; }

  __device__ void hold() {
    __syncthreads();  // the queries are written
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int d = 0; d < DP / 16; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const __half* q = queries + (8 * j + lane / 4) * DP + d * 16 + lane % 4 * 4 + i;
          held[j][d][i] = pack_two<__half>(to_float(q[0]), to_float(q[2]));
        }
    }
    // Eight threads a sum.
    const int groups = plan.packing[w.part][0].groups, dims = DP / groups / 8;
    for (int i = threadIdx.x / 8; i < RT * groups; i += kThreads / 8) {
      const __half* q = queries + i % RT * DP + (i / RT * 8 + threadIdx.x % 8) * dims;
      float sum = 0.f;
#pragma unroll 4
      for (int d = 0; d < dims; ++d) sum += to_float(q[d]);
      sum = warp_sum<8>(sum);
      if (threadIdx.x % 8 == 0) q_sums[i] = sum;
    }
    __syncthreads();  // and read
  }

  __device__ void reset() { sums.clear(); }
  __device__ bool spoiled() const { return sums.odd(); }

  template <class View>
  __device__ void tile(const View& v) {
    const Part& part = plan.parts[w.part];
#pragma unroll 1
    for (int key0 = 0; key0 < Shape::KT && key0 < v.count; key0 += kSub) {
      float s[kTiles][4] = {};
      const Packing* packing = plan.packing[w.part];
      with_words(part.k.codec, [&](auto words) {
        if (2 * packing[0].groups == kBlocks)
          dot<2>(words, v.keys, key0, s);  // groups of 64 dimensions are the usual case
        else
          dot<1>(words, v.keys, key0, s);
      });
      to_logits<4 * kTiles>(
          plan.p, w, rows, v, v.scores,
          [&](int i) {
            return Element{i / 4 * 8 + int(lane % 4) * 2 + i % 2,
                           key0 + int(key_at(lane / 4)) + i / 2 % 2 * 8};
          },
          [&](int i) -> float& { return s[i / 4][i % 4]; });
      sums.weigh(s);
      if constexpr (kExact)
        add_values_exactly(part.v.codec, v.values, key0, s);
      else
        with_words(part.v.codec, [&](auto words) {
          if (2 * packing[1].groups <= kBlocks)
            add_values<true>(words, v.values, key0, s);
          else
            add_values<false>(words, v.values, key0, s);
        });
    }
  }

  // s += q . k: sums of products with codes get scale and zero once per kPer blocks of dimensions.
  template <int kPer, class Words>
  __device__ __forceinline__ void dot(Words, const unsigned char* keys, int key0,
                                      float (&s)[kTiles][4]) const {
    const unsigned lane = ptx::opaque(this->lane), mine = key_at(lane / 4);
    constexpr unsigned kChunks = Words::chunks(DP), kRow = kChunks * 16;
    const ptx::Shared start = Words::start(ptx::shared_at(keys) + (key0 + mine) * kRow,
                                           turn_of(Words::kBits == 8, kChunks, mine), 0, lane % 4);
    const unsigned groups = plan.packing[w.part][0].groups;
    const Grid* grid = key_grids + (key0 + mine) * groups;
#pragma unroll
    for (int first = 0; first < kBlocks; first += kPer) {
      float part[kTiles][4] = {};
#pragma unroll
      for (int b = first; b < first + kPer; ++b) {
        uint32_t raw[2][2];  // of both keys
#pragma unroll
        for (int i = 0; i < 2; ++i) Words::load(start + i * 8 * kRow, b, raw[i]);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t low = Words::bytes(raw[0], h, lane % 4);
          const uint32_t high = Words::bytes(raw[1], h, lane % 4);
          const uint32_t k[4] = {Words::template pair<0, 2>(low), Words::template pair<0, 2>(high),
                                 Words::template pair<1, 3>(low), Words::template pair<1, 3>(high)};
#pragma unroll
          for (int j = 0; j < kTiles; ++j) ptx::mma_16816<__half>(part[j], k, held[j][2 * b + h]);
        }
      }
      const unsigned at = kPer == 2 ? first / 2 : first * groups / kBlocks;
      const Grid low = grid[at], high = grid[8 * groups + at];
      // Of groups of 128 dimensions, the first part brings all that zeros add.
      const bool begins = kPer == 2 || first * groups % kBlocks == 0;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const auto q_sum =
            *reinterpret_cast<const Pack<float, 2>*>(q_sums + at * RT + 8 * j + lane % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Grid g = e < 2 ? low : high;
          s[j][e] += part[j][e] * g.scale + (begins ? q_sum.at[e % 2] * g.zero : 0.f);
        }
      }
    }
  }

  // Scale and zero of the values of keys t, t + 4 and t + 8, t + 12, t = key, in a block.
  struct Grids {
    GridPair low, high;
  };
  __device__ Grids grids_at(unsigned key, unsigned block) const {
    const unsigned groups = plan.packing[w.part][1].groups;
    const GridPair* at = value_grids + block * groups / kBlocks * (Shape::KT / 2);
    return {at[GridPair::of(key)], at[GridPair::of(key) + 4]};
  }

  // kShared: all of 64 dimensions share a scale. Weights then take scales on, and zeros and the
  // offset of codes have a sum of their own; else values do.
  template <bool kShared, class Words>
  __device__ __forceinline__ void add_values(Words, const unsigned char* values, int key0,
                                             const float (&s)[kTiles][4]) {
    const unsigned lane = ptx::opaque(this->lane), t = lane % 4, quad = lane / 4 % 4;
    constexpr unsigned kChunks = Words::chunks(DP), kRow = kChunks * 16;
    ptx::Shared starts[2];
#pragma unroll
    for (unsigned i = 0; i < 2; ++i)
      starts[i] = Words::start(ptx::shared_at(values) + (key0 + t + 4 * i) * kRow,
                               turn_of(Words::kBits == 8, kChunks, t + 4 * i), lane / 16, quad);
    uint32_t weights[kTiles][2], scaled[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) as_operand<__half>(s[j], weights[j]);
#pragma unroll
    for (int half = 0; half < DP / 64; ++half) {
      const Grids g = grids_at(key0 + t, kShared ? 2 * half : 2 * half + lane / 16);
#pragma unroll
      for (int j = 0; j < kTiles && kShared; ++j)
        take_scales<Words>(weights[j], g, scaled[j], sums.o[j][kSums + half]);
      uint32_t raw[4][2];  // of keys t, 4 + t, 8 + t, 12 + t
#pragma unroll
      for (int k = 0; k < 4; ++k) Words::load(starts[k % 2] + k / 2 * 8 * kRow, 2 * half, raw[k]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t x[2][4];
        spread<Words>(Words::bytes(raw[0], h, quad), Words::bytes(raw[1], h, quad), x[0]);
        spread<Words>(Words::bytes(raw[2], h, quad), Words::bytes(raw[3], h, quad), x[1]);
        if (!kShared) decode<Words>(x, g);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const uint32_t a[4] = {x[0][i], x[0][i + 1], x[1][i], x[1][i + 1]};
#pragma unroll
          for (int j = 0; j < kTiles; ++j)
            ptx::mma_16816<__half>(sums.o[j][half * 4 + h * 2 + i / 2], a,
                                   kShared ? scaled[j] : weights[j]);
        }
      }
    }
  }
  // The codes of four dimensions, of two keys in pairs.
  template <class Words>
  __device__ static void spread(uint32_t first, uint32_t second, uint32_t (&x)[4]) {
    const uint32_t low = __byte_perm(first, second, 0x5140),
                   high = __byte_perm(first, second, 0x7362);
    x[0] = Words::template pair<0, 1>(low);
    x[1] = Words::template pair<2, 3>(low);
    x[2] = Words::template pair<0, 1>(high);
    x[3] = Words::template pair<2, 3>(high);
  }
  // Weights times scales; `rest` gains the weights times zeros, less the codes' offset.
  template <class Words>
  __device__ __forceinline__ static void take_scales(const uint32_t (&weights)[2], const Grids& g,
                                                     uint32_t (&scaled)[2], float (&rest)[4]) {
    constexpr uint32_t kGain = two_powers(Words::kGain);
    const uint32_t zeros[2] = {ptx::multiply_halves(weights[0], g.low.zero),
                               ptx::multiply_halves(weights[1], g.high.zero)};
    scaled[0] = ptx::multiply_halves(weights[0], g.low.scale);
    scaled[1] = ptx::multiply_halves(weights[1], g.high.scale);
    ptx::mma_16816<__half>(rest, {kGain, kGain, kGain, kGain}, zeros);
    if constexpr (!Words::kFp8)
      ptx::mma_16816<__half>(rest, {kMinusOffset, kMinusOffset, kMinusOffset, kMinusOffset},
                             scaled);
  }
  // Codes become values.
  template <class Words>
  __device__ static void decode(uint32_t (&x)[2][4], const Grids& g) {
    constexpr uint32_t kLess = two_powers(-Words::kGain);
    constexpr uint32_t kNoOffset = Words::kFp8 ? 0 : two_powers(10 - Words::kGain) | 0x80008000u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[0][i] = ptx::fma_halves(x[0][i], kLess, kNoOffset);
      x[1][i] = ptx::fma_halves(x[1][i], kLess, kNoOffset);
      x[0][i] = ptx::fma_halves(x[0][i], g.low.scale, g.low.zero);
      x[1][i] = ptx::fma_halves(x[1][i], g.high.scale, g.high.zero);
    }
  }

  // Dimension of row r of sum c.
  __device__ static int dim_of(int c, int r) {
    const int g = r % 8, block = c / 4 * 2 + g / 4;
    return block * kPackBlock + c / 2 % 2 * 16 + g % 4 * 4 + c % 2 * 2 + r / 8;
  }

  // The same sum key by key, leaving out weights of zero, whatever their value holds.
  __device__ void add_values_exactly(Codec codec, const unsigned char* values, int key0,
                                     const float (&s)[kTiles][4]) {
    const int row = plan.packing[w.part][1].row, groups = plan.packing[w.part][1].groups;
#pragma unroll 1
    for (int k = 0; k < kSub; ++k) {
      // Key 8 i + t + 4 e is at row 2 t + e.
      const int from = k % 4 * 2 + k / 4 % 2;
      const float gain = sum_gain();
      const CodeRow at{codec, values + (key0 + k) * row, row / 16, k};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        float weight[2];
        sums.weights_of(s[j], from, k >= 8, weight);
#pragma unroll
        for (int c = 0; c < DP / 16; ++c)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int d = dim_of(c, lane / 4 + half * 8);
            const int group = d / kPackBlock * groups / kBlocks;
            const Grid g =
                value_grids[group * (Shape::KT / 2) + GridPair::of(key0 + k)].get(key0 + k);
            const float x = at.number(d) * g.scale + g.zero * gain;
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (weight[i] != 0.f) sums.o[j][c][2 * half + i] += weight[i] * x;
          }
      }
    }
  }

  // By how much sums are too large: where values take scales on one by one, by nothing.
  __device__ float sum_gain() const {
    const bool shared = 2 * plan.packing[w.part][1].groups <= kBlocks;
    return shared || kExact ? gain_of(plan.parts[w.part].v.codec) : 1.f;
  }
  __device__ void store(float* partial, float* tops) {
    const float gain = sum_gain();
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int c = 0; c < kSums; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums.o[j][c][e] = (sums.o[j][c][e] + sums.o[j][kSums + c / 4][e]) / gain;
    sums.template store<kSums>(partial, tops, [](int c, int r) { return dim_of(c, r); });
  }
};

}  // namespace
}  // namespace tokops::paged
