// How a warp streams a part on its own: full rows, or codes that go from shared memory straight
// into the operands of the tensor cores.
#pragma once
#include "attention/packed_decode.cuh"
#include "attention/packed_decode.words.cuh"
#include "attention/paged_decode.mma.cuh"

namespace tokops::paged {
namespace {

// Up to NS tiles of a part in a ring, the one at work included. kCodes: both sides are packed, and
// come with grids; else both are full, in the layout of Shape.
template <class Shape, bool kCodes>
struct WarpStream {
  using Plan = PackedPlan;
  using Slot = PackedSlot;
  using T = typename Shape::T;
  using Team = typename Shape::Team;
  static constexpr bool kPacked = true;
  static constexpr int NS = Shape::NS, KT = Shape::KT;
  static constexpr int kGroups = Shape::DP / kPackBlock;  // at most, of a token
  static_assert(!kCodes || KT == 32);                     // a lane has the scales of one key

  const PackedPlan& plan;
  unsigned char* const data;
  PackedSlot* const slots;
  const Work& w;
  const Span span;
  PackedSlot pending;
  // Of this lane's key in the next tile, as they are stored: scale and zero of a group, both norms.
  uint32_t grids_ahead[2][kCodes ? kGroups : 1], norms_ahead;

  __device__ WarpStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                        void* slots)
      : plan(plan), data(data), slots(static_cast<PackedSlot*>(slots)), w(w), span(span) {
    if (plan.p.rotate) turn_queries();
  }

  // A warp's ring, then grids [2 sides, KT, plan.groups].
  __host__ __device__ static int data_bytes(const PackedPlan& plan) {
    return kStreamRing + kCodeKeys * 2 * plan.groups * int(sizeof(Grid));
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
  __device__ int stages() const { return plan.rings[w.part].stages; }
  __device__ bool scattered() const { return w.list || part().positions; }
  __device__ bool has(int n) const { return span.begin + n * KT < span.end; }
  __device__ unsigned char* bytes(int n, int s) const {
    const Ring& ring = plan.rings[w.part];
    return data + KT * (n % ring.stages * ring.tile + s * ring.keys);
  }
  __device__ const T* keys(int n) const { return reinterpret_cast<const T*>(bytes(n, 0)); }
  __device__ const T* values(int n) const { return reinterpret_cast<const T*>(bytes(n, 1)); }
  __device__ PackedSlot* slots_of(int n) const { return slots + n % (NS + 1) * KT; }
  __device__ Grid* grids(int s) const {
    return reinterpret_cast<Grid*>(data + kStreamRing) + s * KT * plan.groups;
  }

  __device__ PackedSlot find(int n) const {
    const int i = span.begin + n * KT + Shape::found_key();
    return find_slot(plan, w, Shape::finds() && i < span.end ? i : -1);
  }
  __device__ void keep(int n, const PackedSlot& f) const {
    if (Shape::finds()) slots_of(n)[Shape::found_key()] = inside(part(), f);
  }

  __device__ static void copy(unsigned char* to, const unsigned char* from, bool live,
                              bool aligned) {
    if (aligned) {
      ptx::cp_async<16>(to, from, live);
    } else {
      for (int i = 0; i < 16; ++i) to[i] = live ? from[i] : 0;
    }
  }

  // Starts the copies of tile n. Keys that are not there become zeros: 0 times garbage may be NaN.
  __device__ void load(int n) const {
#pragma unroll 1
    for (int s = 0; s < 2 && has(n); ++s) {
      const Side& x = side(s);
      const int row = packing(s).row, chunks = row / 16, shift = __ffs(chunks) - 1;
      const auto* base = static_cast<const unsigned char*>(x.data) + w.hkv * x.h;
      unsigned char* to = bytes(n, s);
      const bool whole = x.codec == Codec::int8 || x.codec == Codec::e4m3 || x.codec == Codec::e5m2;
#pragma unroll 4
      for (int i = Team::rank(); i < KT * chunks; i += Team::kSize) {
        const int j = i >> shift, c = i & (chunks - 1);
        const PackedSlot f = slots_of(n)[j];
        const int turn = kCodes ? turn_of(whole, chunks, j) : j & 7;
        copy(to + j * row + (c ^ turn) * 16, base + f.page * x.n + f.slot * x.p + c * 16,
             f.pos >= 0, packing(s).copy == 16);
      }
    }
    ptx::cp_async_commit();  // an empty group too: stages - 1 groups are always in flight
  }
  __device__ void wait() const {
    if (stages() == 2)
      ptx::cp_async_wait<0>();
    else
      ptx::cp_async_wait<1>();
  }

  // The scales of this lane's key of tile n.
  __device__ void fetch(int n) {
    if (!kCodes || !has(n)) return;
    const PackedSlot f = slots_of(n)[Team::rank()];
    norms_ahead = 0;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Side& x = side(s);
      const int64_t from = f.page * x.s_n + w.hkv * x.s_h + f.slot * x.s_p;
      const auto *scale = static_cast<const uint16_t*>(x.scale) + from,
                 *zero = static_cast<const uint16_t*>(x.zero) + from;
#pragma unroll
      for (int g = 0; g < (kCodes ? kGroups : 0); ++g)
        if (g < packing(s).groups)
          grids_ahead[s][g] = scale[g * x.s_g] | (x.zero ? uint32_t(zero[g * x.s_g]) << 16 : 0);
      if (x.norm)
        norms_ahead |= uint32_t(x.norm[f.page * x.norm_n + w.hkv * x.norm_h + f.slot * x.norm_p])
                       << 16 * s;
    }
  }
  // Places them. A slot that holds nothing has a norm of NaN: its key scores NaN and counts as
  // none, its value is zero as that of a key that is not there.
  __device__ void place(int n) const {
    if (!kCodes || !has(n)) return;
    const bool live = slots_of(n)[Team::rank()].pos >= 0;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Side& x = side(s);
      const int groups = packing(s).groups;
      const float norm =
          x.norm ? __half2float(__ushort_as_half(uint16_t(norms_ahead >> 16 * s))) : 1.f;
      const bool void_value = s == 1 && norm != norm;
#pragma unroll
      for (int g = 0; g < (kCodes ? kGroups : 0); ++g) {
        if (g >= groups) continue;
        Grid grid = grid_of(x, grids_ahead[s][g] & 0xffff, grids_ahead[s][g] >> 16);
        grid.zero += middle_of(x.codec) * grid.scale;
        grids(s)[Team::rank() * groups + g] =
            live && !void_value ? Grid{grid.scale * norm, grid.zero * norm} : Grid{0.f, 0.f};
      }
    }
  }

  __device__ void start() {
#pragma unroll 1
    for (int n = 0; n < NS - 1; ++n) keep(n, find(n));
    pending = find(NS - 1);
    Team::sync();  // the first slots are written
    for (int n = 0; n < stages() - 1; ++n) load(n);
    fetch(0);
  }

  // Tile n is there for all when this returns.
  __device__ void next(int n) {
    keep(n + NS - 1, pending);
    wait();
    Team::sync();  // tile n and the next slots are there for all; nobody reads tile n - 1
    place(n);
    pending = find(n + NS);
    load(n + stages() - 1);
    fetch(n + 1);
    if (kCodes) Team::sync();  // the grids are written
  }
};

// Attention over a tile of codes on tensor cores: 16 rows, 16 keys at a time, float16 operands. The
// order of dimensions and of keys within a product is free, and such that a lane finds what it
// feeds in words of codes: with (g, t) = (lane / 4, lane % 4), it has quads t and 4 + t of key
// key_at(g) in every block of 32 dimensions, and of keys t, 4 + t, 8 + t and 12 + t quads i and
// 4 + i, i = g % 4, of every second block.
template <class Shape_, bool kExact_ = false>
struct CodeMath {
  using Shape = Shape_;
  using Exact = CodeMath<Shape, true>;
  static constexpr bool kExact = kExact_;
  using Q = __half;
  static constexpr bool kHeld = true;
  static constexpr int RT = 16, DP = Shape::DP, kSub = 16, kBlocksPerSm = 3;
  static constexpr int kBlocks = DP / kPackBlock;

  const PackedPlan& plan;
  const Work& w;
  const Row* rows;
  const __half* queries;  // [rows, DP], zero where there is no row
  const Grid* grids;      // of keys, and as far again as keys have them those of values
  int lane;
  uint32_t held[DP / 16][4];
  float q_sums[kBlocks][2];        // of the lane's rows, over a block of dimensions
  float o[DP / 8][4], m[2], l[2];  // l: this lane's columns only

  template <class Stream>
  __device__ CodeMath(const PackedPlan& plan, const Work& w, __half* q, const Row* rows,
                      const Stream& stream)
      : plan(plan), w(w), rows(rows), queries(q), grids(stream.grids(0)), lane(threadIdx.x % 32) {
    for (int i = threadIdx.x; i < RT * DP; i += kThreads) {
      const int r = i / DP;
      q[i] = from_float<__half>(r < w.rows() ? stream.query(r, i % DP) : 0.f);
    }
  }

  // Column c of a product's eight keys is this one of them.
  __device__ static int key_at(int c) { return c / 2 + c % 2 * 4; }

  __device__ void hold() {
    __syncthreads();  // the queries are written
#pragma unroll
    for (int d = 0; d < DP / 16; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const __half* q = queries + (lane / 4 + i % 2 * 8) * DP + d * 16 + lane % 4 * 4 + i / 2;
        held[d][i] = pack_two<__half>(to_float(q[0]), to_float(q[2]));
      }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const __half* q = queries + (lane / 4 + half * 8) * DP + b * kPackBlock + lane % 4 * 8;
        float sum = 0.f;
#pragma unroll
        for (int e = 0; e < 8; ++e) sum += to_float(q[e]);
        q_sums[b][half] = warp_sum<4>(sum);
      }
    __syncthreads();  // and read
  }

  __device__ void reset() { clear_sums(o, m, l); }
  __device__ bool spoiled() const { return has_odd(o); }

  template <class View>
  __device__ void tile(const View& v) {
    const Part& part = plan.parts[w.part];
#pragma unroll 1
    for (int key0 = 0; key0 < Shape::KT && key0 < v.count; key0 += kSub) {
      float s[2][4] = {};  // keys key0.. and key0 + 8..
      with_words(part.k.codec, [&](auto words) { dot(words, v.keys, key0, s); });
      to_logits<8>(
          plan.p, w, rows, v, v.scores,
          [&](int i) {
            return Element{lane / 4 + i / 4 * 8, key0 + i / 2 % 2 * 8 + lane % 4 + i % 2 * 4};
          },
          [&](int i) -> float& { return s[i / 2 % 2][i / 4 * 2 + i % 2]; });
      to_weights(s, o, m, l);
      if constexpr (kExact)
        add_values_exactly(part.v.codec, v.values, key0, s);
      else
        with_words(part.v.codec, [&](auto words) { add_values(words, v.values, key0, s); });
    }
  }

  // s += q . k: sums of products with codes get scale and zero once per group of dimensions.
  template <class Words>
  __device__ __forceinline__ void dot(Words, const unsigned char* keys, int key0,
                                      float (&s)[2][4]) const {
    const int lane = ptx::opaque(this->lane);
    const int chunks = Words::chunks(DP), mine = key_at(lane / 4);
    const int turn = turn_of(Words::kBits == 8, chunks, mine);
    const unsigned char* row = keys + (key0 + mine) * chunks * 16;
    const int groups = plan.packing[w.part][0].groups, per = kBlocks / groups;
    float sums[2][4], q_sum[2];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if ((b & (per - 1)) == 0) {
        q_sum[0] = q_sum[1] = 0.f;
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[0][e] = sums[1][e] = 0.f;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t raw[2];
        Words::load(row + i * 8 * chunks * 16, turn, b, lane % 4, raw);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t codes = Words::bytes(raw, h, lane % 4);
          ptx::mma_16816<__half>(
              sums[i], held[2 * b + h],
              {Words::template pair<0, 2>(codes), Words::template pair<1, 3>(codes)});
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) q_sum[half] += q_sums[b][half];
      if ((b & (per - 1)) == per - 1) {
        const Grid* at = grids + (key0 + lane % 4) * groups + b / per;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const Grid g = at[(i * 8 + e % 2 * 4) * groups];
            s[i][e] += sums[i][e] * g.scale + q_sum[e / 2] * g.zero;
          }
      }
    }
  }

  __device__ const Grid* value_grids(int key) const {
    return grids + Shape::KT * plan.groups + key * plan.packing[w.part][1].groups;
  }
  // Scale and zero of keys `key` and key + 4, paired.
  struct GridPair {
    uint32_t scale, zero;
  };
  __device__ static GridPair grid_pair(const Grid* at, int step) {
    return {ptx::pack_halves(at[0].scale, at[step].scale),
            ptx::pack_halves(at[0].zero, at[step].zero)};
  }

  template <class Words>
  __device__ __forceinline__ void add_values(Words, const unsigned char* values, int key0,
                                             const float (&s)[2][4]) {
    const uint32_t a[4] = {pack_two<__half>(s[0][0], s[0][1]), pack_two<__half>(s[0][2], s[0][3]),
                           pack_two<__half>(s[1][0], s[1][1]), pack_two<__half>(s[1][2], s[1][3])};
    const int lane = ptx::opaque(this->lane);
    const int chunks = Words::chunks(DP), row = chunks * 16, t = lane % 4, quad = lane / 4 % 4;
    const int groups = plan.packing[w.part][1].groups;
    const unsigned char* from = values + (key0 + t) * row;
    int turns[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) turns[i] = turn_of(Words::kBits == 8, chunks, t + 4 * i);
#pragma unroll
    for (int half = 0; half < DP / 64; ++half) {
      const int b = 2 * half + lane / 16;
      uint32_t raw[4][2];  // of keys t, 4 + t, 8 + t, 12 + t
#pragma unroll
      for (int k = 0; k < 4; ++k) Words::load(from + k * 4 * row, turns[k % 2], b, quad, raw[k]);
      const Grid* at = value_grids(key0 + t) + b * groups / kBlocks;
      const GridPair low = grid_pair(at, 4 * groups), high = grid_pair(at + 8 * groups, 4 * groups);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t codes[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) codes[k] = Words::bytes(raw[k], h, quad);
        uint32_t x[2][4];
        spread<Words>(codes[0], codes[1], low, x[0]);
        spread<Words>(codes[2], codes[3], high, x[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ptx::mma_16816<__half>(o[half * 8 + h * 4 + i], a, {x[0][i], x[1][i]});
      }
    }
  }
  // The values of four dimensions, of two keys in pairs.
  template <class Words>
  __device__ static void spread(uint32_t first, uint32_t second, const GridPair& g,
                                uint32_t (&x)[4]) {
    const uint32_t low = __byte_perm(first, second, 0x5140),
                   high = __byte_perm(first, second, 0x7362);
    x[0] = Words::template pair<0, 1>(low);
    x[1] = Words::template pair<2, 3>(low);
    x[2] = Words::template pair<0, 1>(high);
    x[3] = Words::template pair<2, 3>(high);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = ptx::fma_halves(x[i], g.scale, g.zero);
  }

  // Dimension of column c of sum j.
  __device__ static int dim_of(int j, int c) {
    return (j / 8 * 2 + c / 4) * kPackBlock + j / 4 % 2 * 16 + c % 4 * 4 + j % 4;
  }

  // The same sum key by key, leaving out weights of zero, whatever their value holds.
  __device__ __forceinline__ void add_values_exactly(Codec codec, const unsigned char* values,
                                                     int key0, const float (&s)[2][4]) {
    const int row = plan.packing[w.part][1].row, groups = plan.packing[w.part][1].groups;
#pragma unroll 1
    for (int k = 0; k < kSub; ++k) {
      // Key 8 i + t + 4 e is at column 2 t + e.
      float weight[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = k < 8 ? s[0][2 * half] : s[1][2 * half];
        const float high = k < 8 ? s[0][2 * half + 1] : s[1][2 * half + 1];
        weight[half] = __shfl_sync(kFullWarp, k / 4 % 2 ? high : low, lane / 4 * 4 + k % 4);
      }
      const CodeRow at{codec, values + (key0 + k) * row, row / 16, k};
      const Grid* grids = value_grids(key0 + k);
#pragma unroll
      for (int j = 0; j < DP / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = dim_of(j, lane % 4 * 2 + e);
          const Grid g = grids[d / kPackBlock * groups / kBlocks];
          const float x = at.number(d) * g.scale + g.zero;
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (weight[half] != 0.f) o[j][2 * half + e] += weight[half] * x;
        }
    }
  }

  __device__ void store(float* partial, float* tops) const {
    store_sums(o, m, l, threadIdx.x / 32 * RT, partial, tops,
               [](int j, int c) { return dim_of(j, c); });
  }
};

}  // namespace
}  // namespace tokops::paged
