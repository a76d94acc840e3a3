// How a warp streams a part on its own: full rows, or codes that go from shared memory straight
// into the operands of the tensor cores.
#pragma once
#include "attention/packed_decode.cuh"
#include "attention/packed_decode.words.cuh"
#include "attention/paged_decode.flip.cuh"

namespace tokops::paged {
namespace {

// Scales, times the codec's gain, and zeros of a value and the one four keys on, in float16.
struct alignas(8) GridPair {
  uint32_t scale, zero;
  __device__ static unsigned of(unsigned key) { return key / 8 * 4 + key % 4; }
  __device__ void put(int key, const Grid& g) {
    const uint32_t both = ptx::pack_halves(g.scale, g.zero);
    auto* halves = reinterpret_cast<uint16_t*>(this) + key / 4 % 2;
    halves[0] = uint16_t(both);
    halves[2] = uint16_t(both >> 16);
  }
  __device__ Grid get(int key) const {
    const int shift = key / 4 % 2 * 16;
    return {__half2float(__ushort_as_half(uint16_t(scale >> shift))),
            __half2float(__ushort_as_half(uint16_t(zero >> shift)))};
  }
};

// Two tiles of a part in a ring, the one at work included, or where they do not fit one. kCodes:
// both sides are packed, and come with grids; else both are full, in the layout of Shape.
template <class Shape, bool kCodes>
struct WarpStream {
  using Plan = PackedPlan;
  using Slot = PackedSlot;
  using T = typename Shape::T;
  using Team = typename Shape::Team;
  static constexpr bool kPacked = true;
  static constexpr int NS = Shape::NS, KT = Shape::KT;
  static constexpr int kGroups = kCodes ? Shape::DP / kPackBlock : 1;  // of a token, at most
  static_assert(!kCodes || KT == 32);  // a lane has the scales of one key

  const PackedPlan& plan;
  unsigned char* const data;
  PackedSlot* const slots;
  const Work& w;
  const Span span;
  PackedSlot pending;
  // Of this lane's key in the next tile, as they are stored: scales and zeros, both norms. A word
  // is the scale of a group, wide or beside its zero, or the scales and then the zeros of two
  // groups.
  static constexpr int kWords = kGroups;
  uint32_t words_ahead[2][kWords], norms_ahead;

  __device__ WarpStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                        void* slots)
      : plan(plan), data(data), slots(static_cast<PackedSlot*>(slots)), w(w), span(span) {
    if (plan.p.rotate) turn_queries();
  }

  // A warp's ring, then key_grids [KT, groups], then value_grids [groups, KT / 2].
  __host__ __device__ static int data_bytes(const PackedPlan& plan) {
    return plan.stream_ring + kCodeKeys * plan.groups * int(sizeof(Grid) + sizeof(GridPair) / 2);
  }
  __device__ static Work work(const PackedPlan& plan, int64_t group, int block, int split) {
    return work_of(plan, group, block, split);
  }
  __device__ static Span span_of(const PackedPlan& plan, const Work& w) {
    const int begin = w.begin + (w.split - plan.first_split[w.part]) * w.chunk;
    return {begin, w.end - begin < w.chunk ? w.end : begin + w.chunk};
  }
  __device__ static void write(const PagedDecode& p, int64_t at, float x) {
    store_element(p.dtype, p.out, at, x);
  }

  // Queries are turned behind the place that they are held in, before there are any tiles.
  __device__ float* turned() const {
    unsigned char* block = data - Team::index() * data_bytes(plan);
    return reinterpret_cast<float*>(block + kStreamRows * Shape::DP * 2);
  }
  __device__ void turn_queries() const {
    const PagedDecode& p = plan.p;
    for (int i = threadIdx.x; i < w.rows() * p.D; i += kThreads)
      turned()[i] = element_at(p.dtype, p.q, query_offset(p, w, i / p.D) + i % p.D);
    hadamard_rows(turned(), w.rows(), p.D, p.D);
  }
  __device__ float query(int r, int d) const {
    const PagedDecode& p = plan.p;
    return kept<__half>(p.rotate ? turned()[r * p.D + d]
                                 : element_at(p.dtype, p.q, query_offset(p, w, r) + d));
  }
  __device__ void clear_padding() const {}  // there is none

  __device__ const Part& part() const { return plan.parts[w.part]; }
  __device__ const Side& side(int s) const { return s ? part().v : part().k; }
  __device__ const Packing& packing(int s) const { return plan.packing[w.part][s]; }
  __device__ bool scattered() const { return w.list || part().positions; }
  __device__ bool has(int n) const { return span.begin + n * KT < span.end; }
  __device__ bool single() const { return plan.rings[w.part].stages == 1; }
  __device__ unsigned char* bytes(int n, int s) const {
    const Ring& ring = plan.rings[w.part];
    return data + KT * ((single() ? 0 : n % NS) * ring.tile + s * ring.keys);
  }
  __device__ const T* keys(int n) const { return reinterpret_cast<const T*>(bytes(n, 0)); }
  __device__ const T* values(int n) const { return reinterpret_cast<const T*>(bytes(n, 1)); }
  __device__ PackedSlot* slots_of(int n) const { return slots + n % (NS + 1) * KT; }
  __device__ Grid* key_grids() const { return reinterpret_cast<Grid*>(data + plan.stream_ring); }
  __device__ GridPair* value_grids() const {
    return reinterpret_cast<GridPair*>(key_grids() + KT * plan.groups);
  }

  __device__ PackedSlot find(int n) const {
    const int i = span.begin + n * KT + Shape::found_key();
    return find_slot(plan, w, Shape::finds() && i < span.end ? i : -1);
  }
  __device__ void keep(int n, const PackedSlot& f) const {
    if (Shape::finds()) slots_of(n)[Shape::found_key()] = inside(part(), f);
  }

  // Starts the copies of tile n. Keys that are not there become zeros: 0 times garbage may be NaN.
  __device__ void load(int n) const {
#pragma unroll 1
    for (int s = 0; s < 2 && has(n); ++s) {
      if (plan.steps[w.part][s].aligned)
        copy_chunks(n, s);
      else
        copy_bytes(n, s);
    }
    ptx::cp_async_commit();  // an empty group too: NS - 1 groups are always in flight
  }
  // Where chunk c of row j of a side lies in its tile.
  __device__ int turn(int s, int chunks, int j) const {
    if (!kCodes) return j & 7;
    const Codec codec = side(s).codec;
    return turn_of(codec != Codec::int4 && codec != Codec::int2, chunks, j);
  }
  // A lane copies one chunk of every so many rows, whose turn is the same or, of few rows at a
  // time, alternates.
  __device__ __forceinline__ void copy_chunks(int n, int s) const {
    const Steps& steps = plan.steps[w.part][s];
    const int chunks = 1 << steps.shift, rows = 32 >> steps.shift;
    const int c = Team::rank() & (chunks - 1), first = Team::rank() >> steps.shift;
    const auto* from = static_cast<const unsigned char*>(side(s).data) + w.hkv * side(s).h + c * 16;
    const PackedSlot* slot = slots_of(n) + first;
    ptx::Shared to = ptx::shared_at(bytes(n, s)) + first * chunks * 16;
    int turned = c ^ turn(s, chunks, first);
    const int flip = turn(s, chunks, first) ^ turn(s, chunks, first + rows);
#pragma unroll 4
    for (int j = 0; j < KT; j += rows) {
      const PackedSlot f = slot[j];
      const uint32_t at = f.page * steps.page + f.slot * steps.slot;
      const int place = !kCodes && chunks == 16 ? c ^ ((first + j) & 7) : turned;
      ptx::cp_async<16>(to + place * 16, from + uint64_t(at) * 16, f.pos >= 0);
      turned ^= flip;
      to += 512;
    }
  }
  __device__ void copy_bytes(int n, int s) const {
    const Side& x = side(s);
    const int row = packing(s).row, chunks = row / 16;
    const auto* base = static_cast<const unsigned char*>(x.data) + w.hkv * x.h;
#pragma unroll 1
    for (int i = Team::rank(); i < KT * row; i += Team::kSize) {
      const int j = i / row, at = i - j * row;
      const PackedSlot f = slots_of(n)[j];
      const int place = (at / 16 ^ turn(s, chunks, j)) * 16 + at % 16;
      bytes(n, s)[j * row + place] = f.pos >= 0 ? base[f.page * x.n + f.slot * x.p + at] : 0;
    }
  }
  // The scales of this lane's key of tile n.
  __device__ void fetch(int n) {
    if (!kCodes || !has(n)) return;
    const PackedSlot f = slots_of(n)[Team::rank()];
    norms_ahead = 0;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Side& x = side(s);
      const Steps& steps = plan.steps[w.part][s];
      const uint32_t from =
          f.page * steps.scale_page + w.hkv * steps.scale_head + f.slot * steps.scale_slot;
      const auto *scale = static_cast<const uint16_t*>(x.scale),
                 *zero = static_cast<const uint16_t*>(x.zero);
      uint32_t (&words)[kWords] = words_ahead[s];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (g >= packing(s).groups) continue;
        const uint32_t at = from + g * steps.scale_group;
        if (x.wide_scale) {
          words[g] = static_cast<const uint32_t*>(x.scale)[at];
        } else if (!steps.paired) {
          words[g] = scale[at] | (zero ? uint32_t(zero[at]) << 16 : 0);
        } else if (g % 2 == 0) {
          words[g] = *reinterpret_cast<const uint32_t*>(scale + at);
          words[g + 1] = zero ? *reinterpret_cast<const uint32_t*>(zero + at) : 0;
        }
      }
      if (x.norm)
        norms_ahead |= uint32_t(x.norm[f.page * x.norm_n + w.hkv * x.norm_h + f.slot * x.norm_p])
                       << 16 * s;
    }
  }
  // Scale and zero of group g out of a side's words.
  __device__ Grid ahead(int s, int g) const {
    const Side& x = side(s);
    const uint32_t* words = words_ahead[s];
    if (x.wide_scale) return grid_of(x, words[g], 0);
    if (!plan.steps[w.part][s].paired) return grid_of(x, words[g] & 0xffff, words[g] >> 16);
    const int first = g & ~1, shift = g % 2 * 16;
    return grid_of(x, words[first] >> shift & 0xffff,
                   words[(first + 1) % kWords] >> shift & 0xffff);
  }
  // Places them. A slot that holds nothing has a norm of NaN: its key scores NaN and counts as
  // none, its value is zero as that of a key that is not there.
  __device__ void place(int n) const {
    if (!kCodes || !has(n)) return;
    const int key = Team::rank();
    const bool live = slots_of(n)[key].pos >= 0;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Side& x = side(s);
      const int groups = packing(s).groups;
      float norm = 1.f;
      if (x.norm) norm = __half2float(__ushort_as_half(uint16_t(norms_ahead >> 16 * s)));
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (g >= groups) continue;
        Grid grid = ahead(s, g);
        grid = live && (s == 0 || norm == norm) ? Grid{grid.scale * norm, grid.zero * norm}
                                                : Grid{0.f, 0.f};
        if (s == 0) {
          if (has_offset(x.codec)) grid.zero -= kOffset * grid.scale;
          key_grids()[key * groups + g] = grid;
        } else {
          grid.scale *= gain_of(x.codec);
          value_grids()[g * KT / 2 + GridPair::of(key)].put(key, grid);
        }
      }
    }
  }

  __device__ void start() {
#pragma unroll 1
    for (int n = 0; n < NS - 1; ++n) keep(n, find(n));
    pending = find(NS - 1);
    Team::sync();  // the first slots are written
    if (!single()) load(0);
    fetch(0);
  }

  // Tile n is there for all when this returns.
  __device__ void next(int n) {
    keep(n + NS - 1, pending);
    if (single()) {
      Team::sync();  // nobody reads tile n - 1
      load(n);
    }
    ptx::cp_async_wait<NS - 2>();
    Team::sync();  // tile n and the next slots are there for all; nobody reads tile n - 1
    place(n);
    pending = find(n + NS);
    if (!single()) load(n + 1);
    fetch(n + 1);
    if (kCodes) Team::sync();  // the grids are written
  }
  static_assert(NS == 2);
};

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
