// How the keys and values of a part reach shared memory: packed bytes by asynchronous copies into a
// ring, each read from memory once, and from there, as elements, into the one tile that the rows of
// the block share.
#pragma once
#include "attention/packed_decode.codes.cuh"
#include "attention/packed_decode.cuh"
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// Elements are float32 for float32 queries, else float16 for bf16 too: a decoded number has more
// bits than bf16 keeps. Up to Shape::NS tiles are in the ring, the one at work included.
template <class Shape>
struct PackedStream : PartStream {
  using T = typename Shape::T;
  static constexpr int NS = Shape::NS, KT = Shape::KT;
  static constexpr int kGrids = (KT * Shape::DP / 32 + kThreads - 1) / kThreads;
  static constexpr uint32_t kHalfOne = 0x3c00;
  static_assert(2 * KT <= kThreads);  // a thread holds one norm

  __device__ PackedStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                          void* slots)
      : PartStream(plan, w, span, data, slots) {
    if (plan.p.rotate) turn_queries();
  }

  static constexpr int kTileBytes = 2 * Shape::kElements * int(sizeof(T));
  __host__ __device__ static int data_bytes(const PackedPlan& plan) {
    const int grids = 4 * plan.groups * int(sizeof(Grid)), norms = 4 * int(sizeof(float));
    return kTileBytes + KT * (plan.ring_bytes + grids + norms);
  }

  // Queries are turned where the tile will be, which has room for all rows of a block.
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
    return kept<T>(x);
  }
  __device__ void clear_padding() const {
    __syncthreads();  // the turned queries are read
    Shape::clear_padding(tile(0), 2 * KT, plan.p.D);
  }

  __device__ int stages() const { return plan.rings[w.part].stages; }
  __device__ bool has(int n) const { return span.begin + n * KT < span.end; }

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
    const int i = span.begin + n * KT + Shape::found_key();
    return find_slot(plan, w, Shape::finds() && i < span.end ? i : -1);
  }
  __device__ void keep(int n, const PackedSlot& f) const {
    if (Shape::finds()) slots_of(n)[Shape::found_key()] = inside(part(), f);
  }

  // Copies a chunk. Both places are aligned to `copy` bytes.
  __device__ static void copy(unsigned char* to, const unsigned char* from, const Packing& y) {
    if (y.copy == 16) ptx::cp_async<16>(to, from);
    if (y.copy == 8) ptx::cp_async<8>(to, from);
    if (y.copy == 4) ptx::cp_async<4>(to, from);
    for (int i = 0; y.copy == 1 && i < y.chunk; ++i) to[i] = from[i];
  }

  // Starts the copies of tile n.
  __device__ void load(int n) const {
    for (int s = 0; s < 2 && has(n); ++s) {
      const Side& x = side(s);
      const Packing& y = packing(s);
      const auto* base = static_cast<const unsigned char*>(x.data) + w.hkv * x.h;
      unsigned char* to = packed(n, s);
      int j = threadIdx.x / y.chunks, c = threadIdx.x % y.chunks;
      while (j < KT) {
        const PackedSlot at = slots_of(n)[j];
        if (at.pos >= 0)
          copy(to + j * y.row + c * y.chunk, base + at.page * x.n + at.slot * x.p + c * y.chunk, y);
        j += y.next_row;
        c += y.next_chunk;
        if (c >= y.chunks) {
          c -= y.chunks;
          ++j;
        }
      }
    }
    ptx::cp_async_commit();  // an empty group too: stages - 1 groups are always in flight
  }
  __device__ void wait() const {
    if (stages() == 2) ptx::cp_async_wait<0>();
    if (stages() == 3) ptx::cp_async_wait<1>();
    if (stages() > 3) ptx::cp_async_wait<2>();
  }

  // This thread's first scales of a tile, as they are stored: all that groups of 32 dimensions
  // have.
  struct Scales {
    uint32_t scale[2][kGrids], zero[2][kGrids], norm;
  };
  __device__ void fetch(int n, Scales& r) const {
    if (!has(n)) return;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int k = 0; k < kGrids; ++k) {
        const int i = threadIdx.x + k * kThreads;
        if (i < KT * packing(s).groups) fetch_grid(n, s, i, r.scale[s][k], r.zero[s][k]);
      }
    r.norm = fetch_norm(n);
  }
  __device__ void fetch_grid(int n, int s, int i, uint32_t& scale, uint32_t& zero) const {
    const Side& x = side(s);
    const int groups = packing(s).groups;
    const PackedSlot f = slots_of(n)[i / groups];
    const int64_t from = f.page * x.s_n + w.hkv * x.s_h + f.slot * x.s_p + i % groups * x.s_g;
    scale = stored_bits(x, x.scale, from);
    zero = x.zero ? stored_bits(x, x.zero, from) : 0;
  }
  __device__ uint32_t fetch_norm(int n) const {
    const Side& x = side(threadIdx.x / KT % 2);
    const PackedSlot f = slots_of(n)[threadIdx.x % KT];
    if (!x.norm) return kHalfOne;
    return x.norm[f.page * x.norm_n + w.hkv * x.norm_h + f.slot * x.norm_p];
  }
  __device__ void place(int n, const Scales& r) const {
    if (!has(n)) return;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int k = 0; k < kGrids; ++k) {
        const int i = threadIdx.x + k * kThreads;
        if (i < KT * packing(s).groups)
          grids_of(n, s)[i] = grid_of(side(s), r.scale[s][k], r.zero[s][k]);
      }
    place_from(n, kGrids * kThreads, r.norm);
  }
  // Places the scales from the i-th on, unforeseen, and this thread's norm.
  __device__ void place_from(int n, int i, uint32_t norm) const {
#pragma unroll 1
    for (int s = 0; s < 2; ++s)
#pragma unroll 1
      for (int k = i + threadIdx.x; k < KT * packing(s).groups; k += kThreads) {
        uint32_t scale, zero;
        fetch_grid(n, s, k, scale, zero);
        grids_of(n, s)[k] = grid_of(side(s), scale, zero);
      }
    if (threadIdx.x < 2 * KT)
      norms_of(n, threadIdx.x / KT)[threadIdx.x % KT] =
          __half2float(__ushort_as_half(uint16_t(norm)));
  }

  // Makes elements of the bytes of tile n, in eight columns of every so many rows. Keys that are
  // not there become zeros: 0 times garbage may be NaN.
  static constexpr int kColumns = Shape::DP / 8, kRowStep = kThreads / kColumns;
  __device__ void decode(int n) const {
    const int column = threadIdx.x % kColumns * 8;
    if (column >= plan.p.D) return;
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
      if (side(s).channel)
        decode_channels(n, s, column);
      else
        with_octet<T>(side(s).codec, plan.p.dtype, column,
                      [&](const auto& octet) { decode_tokens(n, s, column, octet); });
    }
  }
  template <class Octet>
  __device__ __forceinline__ void decode_tokens(int n, int s, int column,
                                                const Octet& octet) const {
    const int groups = packing(s).groups, row = packing(s).row;
    const unsigned char* from = packed(n, s);
    const Grid* grids = grids_of(n, s) + column * groups / plan.p.D;
#pragma unroll 2
    for (int j = threadIdx.x / kColumns; j < KT; j += kRowStep) {
      float x[8];
      octet.read(from + j * row, x);
      const Grid g = groups ? grids[j * groups] : Grid{1.f, 0.f};
      put(n, s, j, column, x, [&](int) { return g; });
    }
  }
  // Scales per channel are read where they lie, once for consecutive rows of one group of tokens.
  __device__ void decode_channels(int n, int s, int column) const {
    const Side& x = side(s);
    const unsigned char* from = packed(n, s);
    int64_t last = -1;
    Grid g[8] = {};
#pragma unroll 1
    for (int j = threadIdx.x / kColumns; j < KT; j += kRowStep) {
      const PackedSlot at = slots_of(n)[j];
      const int64_t row = at.page * x.s_n + w.hkv * x.s_h + at.slot / x.group * x.s_p;
      if (row != last) load_grids(x, row + column * x.s_g, g);
      last = row;
      float y[8];
      with_octet<T>(x.codec, plan.p.dtype, column,
                    [&](const auto& octet) { octet.read(from + j * packing(s).row, y); });
      put(n, s, j, column, y, [&](int e) { return g[e]; });
    }
  }
  template <class F>
  __device__ __forceinline__ void put(int n, int s, int j, int column, float (&x)[8],
                                      F&& grid) const {
    const bool live = slots_of(n)[j].pos >= 0;
    const float norm = norms_of(n, s)[j];
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e] = live ? (x[e] * grid(e).scale + grid(e).zero) * norm : 0.f;
    store_octet<Shape>(tile(s), j, column, x);
  }

  __device__ void start() const {
#pragma unroll 1  // for want of registers
    for (int n = 0; n < NS; ++n) keep(n, find(n));
    __syncthreads();  // the first slots, queries, rows and padding are written
    for (int n = 0; n < stages() - 1; ++n) load(n);
    if (has(0)) place_from(0, 0, fetch_norm(0));
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
