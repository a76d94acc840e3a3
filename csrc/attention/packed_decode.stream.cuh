// How the keys and values of a part reach shared memory: packed bytes by asynchronous copies into a
// ring, each read from memory once, and from there, as elements, into the one tile that the rows of
// the block share.
#pragma once
#include "attention/packed_decode.codes.cuh"
#include "attention/packed_decode.cuh"
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// Where one key of a tile is kept; position -1 where there is none.
struct PackedSlot {
  int page, slot, pos;
};

// Elements are float32 for float32 queries, else float16 for bf16 too: a decoded number has more
// bits than bf16 keeps. Up to Shape::NS tiles are in the ring, the one at work included. Every
// thread decodes what it has copied itself; only the decoded tile needs barriers.
template <class Shape>
struct PackedStream {
  using Plan = PackedPlan;
  using Slot = PackedSlot;
  using T = typename Shape::T;
  static constexpr bool kPacked = true;
  static constexpr int NS = Shape::NS, KT = Shape::KT;
  static constexpr int kGrids = (KT * Shape::DP / 32 + kThreads - 1) / kThreads;
  static_assert(2 * KT <= kThreads);  // a thread holds one norm

  const PackedPlan& plan;
  const Work& w;
  const Span span;
  const Extent extent;
  unsigned char* const data;
  PackedSlot* const slots;

  __device__ PackedStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                          void* slots)
      : plan(plan),
        w(w),
        span(span),
        extent(extent_of(plan.parts[w.part], w)),
        data(data),
        slots(static_cast<PackedSlot*>(slots)) {
    if (plan.p.rotate) turn_queries();
  }

  static constexpr int kTileBytes = 2 * Shape::kElements * int(sizeof(T));
  __host__ __device__ static int data_bytes(const PackedPlan& plan) {
    const int grids = 4 * plan.groups * int(sizeof(Grid)), norms = 4 * int(sizeof(float));
    return kTileBytes + KT * (plan.ring_bytes + grids + norms);
  }
  __device__ static Work work(const PackedPlan& plan, int64_t group, int block, int split) {
    return work_of(plan, group, block, split);
  }
  __device__ static Span span_of(const PackedPlan& plan, const Work& w, int split) {
    const int begin = w.begin + (split - plan.first_split[w.part]) * w.chunk;
    return {begin, w.end - begin < w.chunk ? w.end : begin + w.chunk};
  }
  __device__ static void write(const PagedDecode& p, int64_t at, float x) {
    store_element(p.dtype, p.out, at, x);
  }

  // Queries are turned where the tile will be.
  __device__ float* turned() const { return reinterpret_cast<float*>(data); }
  __device__ void turn_queries() const {
    const PagedDecode& p = plan.p;
    for (int i = threadIdx.x; i < w.rows() * p.D; i += kThreads)
      turned()[i / p.D * Shape::DP + i % p.D] =
          element_at(p.dtype, p.q, query_offset(p, w, i / p.D) + i % p.D);
    hadamard_rows(turned(), w.rows(), p.D, Shape::DP);
  }
  __device__ float query(int r, int d) const {
    const PagedDecode& p = plan.p;
    const float x = p.rotate ? turned()[r * Shape::DP + d]
                             : element_at(p.dtype, p.q, query_offset(p, w, r) + d);
    return to_float(tile_element<T>(x));
  }
  __device__ void clear_padding() const {
    __syncthreads();  // the turned queries are read
    Shape::clear_padding(tile(0), 2 * KT, plan.p.D);
  }

  __device__ int stages() const { return plan.rings[w.part].stages; }
  __device__ bool scattered() const { return w.list || part().positions; }
  __device__ int tiles() const { return (span.end - span.begin + KT - 1) / KT; }
  __device__ const Part& part() const { return plan.parts[w.part]; }
  __device__ const Side& side(int s) const { return s ? part().v : part().k; }
  __device__ const Packing& packing(int s) const { return plan.packing[w.part][s]; }

  // Shared memory: the tile, the ring, scales [2 tiles, 2 sides, KT, plan.groups], norms [2 tiles,
  // 2 sides, KT].
  __device__ T* tile(int s) const { return reinterpret_cast<T*>(data) + s * Shape::kElements; }
  __device__ const T* keys(int) const { return tile(0); }
  __device__ const T* values(int) const { return tile(1); }
  __device__ PackedSlot* slots_of(int n) const { return slots + n % (NS + 1) * KT; }
  __device__ unsigned char* packed(int n, int s) const {
    const Ring& ring = plan.rings[w.part];
    return data + kTileBytes + KT * (n % ring.stages * ring.tile + s * ring.keys);
  }
  __device__ Grid* grids_of(int n, int s) const {
    return reinterpret_cast<Grid*>(data + kTileBytes + KT * plan.ring_bytes) +
           (n % 2 * 2 + s) * KT * plan.groups;
  }
  __device__ float* norms_of(int n, int s) const {
    return reinterpret_cast<float*>(grids_of(0, 0) + 4 * KT * plan.groups) + (n % 2 * 2 + s) * KT;
  }

  // Looks up this thread's key of tile n: its slot and the number of its page, as the table has it.
  __device__ PackedSlot find(int n) const {
    const PackedSlot none{0, 0, -1};
    const int i = span.begin + n * KT + Shape::found_key();
    if (!Shape::finds() || i >= span.end) return none;
    const int64_t head = int64_t(w.b) * plan.p.Hkv + w.hkv;
    int pos = i;
    if (w.list) {
      pos = w.list[i];
    } else if (part().positions) {
      pos = part().positions[head * part().pages * part().P + i];
    }
    if (pos < 0 || pos >= w.view.length) return none;
    int64_t slot = pos - extent.first;
    if (part().positions && !w.list) slot = i;
    if (part().positions && w.list)
      slot = pos < part().where_len
                 ? int64_t(part().where[head * part().where_len + pos]) - part().slot_base
                 : -1;
    if (slot < extent.least || slot >= extent.len) return none;
    const int index = int(slot) / part().P;
    return {part().table[w.b * part().table_b + w.hkv * part().table_h + index],
            int(slot) - index * part().P, pos};
  }
  // Bad table entries are clamped.
  __device__ void keep(int n, PackedSlot f) const {
    if (!Shape::finds()) return;
    const int64_t last = part().pages_in_pool - 1;
    f.page = f.page < 0 ? 0 : f.page > last ? int(last) : f.page;
    slots_of(n)[Shape::found_key()] = f;
  }

  // Calls f(key, unit) for this thread's share of a side.
  template <class F>
  __device__ __forceinline__ void for_units(const Packing& y, F&& f) const {
    int j = threadIdx.x / y.per_row, u = threadIdx.x % y.per_row;
    while (j < KT) {
      f(j, u);
      j += y.next_row;
      u += y.next;
      if (u >= y.per_row) {
        u -= y.per_row;
        ++j;
      }
    }
  }

  template <int Bytes>
  __device__ static void copy(unsigned char* to, const unsigned char* from, int n) {
    for (int i = 0; i < n; i += Bytes) {
      if constexpr (Bytes == 1)
        to[i] = from[i];
      else
        ptx::cp_async<Bytes>(to + i, from + i);
    }
  }

  // Starts the copies of tile n.
  __device__ void load(int n) const {
    for (int s = 0; s < 2 && n < tiles(); ++s) {
      const Side& x = side(s);
      const Packing& y = packing(s);
      const auto* base = static_cast<const unsigned char*>(x.data) + w.hkv * x.h;
      unsigned char* to = packed(n, s);
      for_units(y, [&](int j, int u) {
        const PackedSlot at = slots_of(n)[j];
        if (at.pos < 0) return;
        const unsigned char* from = base + at.page * x.n + at.slot * x.p + u * y.unit;
        unsigned char* there = to + (j * y.per_row + u) * y.unit;
        if (y.copy == 16) copy<16>(there, from, y.unit);
        if (y.copy == 8) copy<8>(there, from, y.unit);
        if (y.copy == 4) copy<4>(there, from, y.unit);
        if (y.copy == 1) copy<1>(there, from, y.unit);
      });
    }
    ptx::cp_async_commit();  // an empty group too: stages - 1 groups are always in flight
  }
  __device__ void wait() const {
    if (stages() == 2) ptx::cp_async_wait<0>();
    if (stages() == 3) ptx::cp_async_wait<1>();
    if (stages() > 3) ptx::cp_async_wait<2>();
  }

  // This thread's share of the scales of a tile, as they are stored: all that groups of 32
  // dimensions have.
  struct Scales {
    uint32_t scale[2][kGrids], zero[2][kGrids], norm;
  };
  __device__ void fetch(int n, Scales& r) const {
    if (n >= tiles()) return;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int k = 0; k < kGrids; ++k) {
        const int i = threadIdx.x + k * kThreads;
        if (i < KT * packing(s).groups) fetch_grid(n, s, i, r.scale[s][k], r.zero[s][k]);
      }
    const Side& x = side(threadIdx.x / KT % 2);
    const PackedSlot f = slots_of(n)[threadIdx.x % KT];
    if (threadIdx.x < 2 * KT && x.norm)
      r.norm = x.norm[f.page * x.norm_n + w.hkv * x.norm_h + f.slot * x.norm_p];
  }
  __device__ void fetch_grid(int n, int s, int i, uint32_t& scale, uint32_t& zero) const {
    const Side& x = side(s);
    const int groups = packing(s).groups;
    const PackedSlot f = slots_of(n)[i / groups];
    const int64_t from = f.page * x.s_n + w.hkv * x.s_h + f.slot * x.s_p + i % groups * x.s_g;
    scale = stored_bits(x, x.scale, from);
    if (x.zero) zero = stored_bits(x, x.zero, from);
  }
  __device__ void place(int n, const Scales& r) const {
    if (n >= tiles()) return;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int count = KT * packing(s).groups;
#pragma unroll
      for (int k = 0; k < kGrids; ++k) {
        const int i = threadIdx.x + k * kThreads;
        if (i < count) grids_of(n, s)[i] = grid_of(side(s), r.scale[s][k], r.zero[s][k]);
      }
#pragma unroll 1
      for (int i = threadIdx.x + kGrids * kThreads; i < count; i += kThreads) {
        uint32_t scale, zero = 0;
        fetch_grid(n, s, i, scale, zero);
        grids_of(n, s)[i] = grid_of(side(s), scale, zero);
      }
    }
    const int s = threadIdx.x / KT;
    if (s < 2)
      norms_of(n, s)[threadIdx.x % KT] =
          side(s).norm ? __half2float(__ushort_as_half(uint16_t(r.norm))) : 1.f;
  }

  // Makes elements of this thread's share of tile n. Keys that are not there become zeros: 0 times
  // garbage may be NaN.
  __device__ void decode(int n) const {
#pragma unroll 1
    for (int s = 0; s < 2; ++s)
      with_unit(side(s).codec, plan.p.dtype, [&](auto tag) {
        using Unit = typename decltype(tag)::type;
        if constexpr (sizeof(T) == 4 || !std::is_same_v<Unit, FullUnit<float>>)
          decode_side<Unit>(n, s);
      });
  }
  template <class Unit>
  __device__ __forceinline__ void decode_side(int n, int s) const {
    const Side& x = side(s);
    const Packing& y = packing(s);
    const unsigned char* from = packed(n, s);
    for_units(y, [&](int j, int u) {
      const PackedSlot at = slots_of(n)[j];
      const Unit unit(from + (j * y.per_row + u) * Unit::kBytes);
      const float norm = norms_of(n, s)[j];
      Grid g[4] = {{1.f, 0.f}, {1.f, 0.f}, {1.f, 0.f}, {1.f, 0.f}};
      if (y.groups) {
        g[0] = grids_of(n, s)[j * y.groups + u * y.groups / y.per_row];
        g[1] = g[2] = g[3] = g[0];
      }
      const int row = x.channel ? at.slot / x.group : 0;
      const int64_t channel = at.page * x.s_n + w.hkv * x.s_h + row * x.s_p;
      const int column = u * Unit::kElements;
      T* to = tile(s);
#pragma unroll
      for (int e = 0; e < Unit::kElements; e += Shape::kPiece) {
        Pack<T, Shape::kPiece> piece;
#pragma unroll
        for (int i = 0; i < Shape::kPiece; ++i) {
          if (i % 4 == 0 && x.channel)
            load_grids(x, y.scale_quads, channel + (column + e + i) * x.s_g, g);
          const float value = (unit(e + i) * g[i % 4].scale + g[i % 4].zero) * norm;
          piece.at[i] = tile_element<T>(at.pos < 0 ? 0.f : value);
        }
        *reinterpret_cast<Pack<T, Shape::kPiece>*>(
            to + Shape::at(j, (column + e) / Shape::kPiece)) = piece;
      }
    });
  }

  __device__ void start() const {
    for (int n = 0; n < NS; ++n) keep(n, find(n));
    __syncthreads();  // the first slots, queries, rows and padding are written
    for (int n = 0; n < stages() - 1; ++n) load(n);
    Scales first;
    fetch(0, first);
    place(0, first);
  }

  // Tile n is there for all when this returns.
  __device__ void next(int n) const {
    wait();
    __syncthreads();  // scales and the next slots are there for all; nobody reads tile n - 1
    const PackedSlot found = find(n + NS);
    load(n + stages() - 1);
    Scales ahead;  // on their way while tile n is decoded
    fetch(n + 1, ahead);
    decode(n);
    place(n + 1, ahead);
    keep(n + NS, found);
    __syncthreads();  // tile n is decoded
  }
};

}  // namespace
}  // namespace tokops::paged
