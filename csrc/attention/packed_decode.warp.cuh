// How a warp streams a part on its own: full rows, or codes and their scales.
#pragma once
#include "attention/packed_decode.cuh"
#include "attention/packed_decode.words.cuh"
#include "attention/paged_decode.tile.cuh"

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
struct WarpStream : PartStream {
  using T = typename Shape::T;
  using Team = typename Shape::Team;
  static constexpr int NS = Shape::NS, KT = Shape::KT;
  static constexpr int kGroups = kCodes ? Shape::DP / kPackBlock : 1;  // of a token, at most
  static_assert(!kCodes || KT == 32);  // a lane has the scales of one key

  PackedSlot pending;
  // Of this lane's key in the next tile, as they are stored: scales and zeros, both norms. A word
  // is the scale of a group, wide or beside its zero, or the scales and then the zeros of two
  // groups.
  static constexpr int kWords = kGroups;
  uint32_t words_ahead[2][kWords], norms_ahead;

  __device__ WarpStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                        void* slots)
      : PartStream(plan, w, span, data, slots) {
    if (plan.p.rotate) turn_queries();
  }

  // A warp's ring, then key_grids [KT, groups], then value_grids [groups, KT / 2].
  __host__ __device__ static int data_bytes(const PackedPlan& plan) {
    return plan.stream_ring + kCodeKeys * plan.groups * int(sizeof(Grid) + sizeof(GridPair) / 2);
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

}  // namespace
}  // namespace tokops::paged
