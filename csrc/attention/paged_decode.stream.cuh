// How full-precision pages reach shared memory: the stream of paged_decode.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// Where one key of a tile lies; position -1 where there is none.
struct Slot {
  int64_t k, v;  // element offsets into the pools
  int pos;
};

// The keys and values of one block's split: NS - 1 tiles in flight, their addresses one further.
template <class Shape>
struct PageStream {
  using Plan = paged::Plan;
  using Slot = paged::Slot;
  using T = typename Shape::T;
  using Team = typename Shape::Team;
  static constexpr bool kPacked = false;
  static constexpr int NS = Shape::NS;

  const Plan& plan;
  const Work& w;
  const Span span;
  T* const stages;
  Slot* const slots;
  struct Found {
    int pos, offset, page;
  } pending;

  __device__ PageStream(const Plan& plan, const Work& w, Span span, void* data, void* slots)
      : plan(plan),
        w(w),
        span(span),
        stages(static_cast<T*>(data)),
        slots(static_cast<Slot*>(slots)) {}

  __host__ __device__ static int data_bytes(const Plan& plan) {
    return NS * (plan.p.v ? 2 : 1) * Shape::kElements * int(sizeof(T));
  }
  __device__ static Work work(const Plan& plan, int64_t group, int block, int split) {
    return work_of(plan, group, block, split);
  }
  __device__ static Span span_of(const Plan&, const Work& w) {
    const int begin = w.begin + w.split * w.chunk;
    return {begin, w.end - begin < w.chunk ? w.end : begin + w.chunk};
  }
  __device__ static void write(const PagedDecode& p, int64_t at, float x) {
    static_cast<T*>(p.out)[at] = from_float<T>(x);
  }
  __device__ float query(int r, int d) const {
    return to_float(static_cast<const T*>(plan.p.q)[query_offset(plan.p, w, r) + d]);
  }

  __device__ bool scattered() const { return w.list; }
  __device__ T* keys(int n) const {
    return stages + (n % NS) * (plan.p.v ? 2 : 1) * Shape::kElements;
  }
  __device__ T* values(int n) const { return keys(n) + Shape::kElements; }
  __device__ const Slot* slots_of(int n) const { return slots + n % (NS + 1) * Shape::KT; }

  __device__ void clear_padding() const {
    Shape::clear_padding(stages, NS * (plan.p.v ? 2 : 1) * Shape::KT, plan.p.D);
  }

  // Looks up this thread's key of tile n, in two steps: a tile's work is done while the table
  // answers.
  __device__ Found find(int n) const {
    Found f{-1, 0, 0};
    const int i = span.begin + n * Shape::KT + Shape::found_key();
    if (!Shape::finds() || i >= span.end) return f;
    const int pos = w.list ? w.list[i] : i;
    if (pos < 0 || pos >= w.view.length) return f;
    const int page_index = pos / plan.p.P;
    return {pos, pos - page_index * plan.p.P,
            plan.p.table[w.b * plan.p.table_b + w.hkv * plan.p.table_h + page_index]};
  }
  // Bad table entries are clamped.
  __device__ void keep(int n, const Found& f) const {
    if (!Shape::finds()) return;
    const PagedDecode& p = plan.p;
    int64_t page = f.page;
    page = page < 0 ? 0 : page >= p.pages_in_pool ? p.pages_in_pool - 1 : page;
    slots[n % (NS + 1) * Shape::KT + Shape::found_key()] = {
        page * p.k_n + w.hkv * p.k_h + f.offset * p.k_p,
        page * p.v_n + w.hkv * p.v_h + f.offset * p.v_p, f.pos};
  }

  __device__ void copy_piece(T* dst, const T* pool, int64_t offset, bool live, bool vector) const {
    const T* src = live ? pool + offset : pool;
    if (vector) {
      ptx::cp_async<16>(dst, src, live);
    } else {
      for (int e = 0; e < Shape::kPiece; ++e) dst[e] = live ? src[e] : from_float<T>(0.f);
    }
  }

  // Starts the copies of tile n. Keys that are not there become zeros: 0 times garbage may be NaN.
  __device__ void load(int n) const {
    if (span.begin + n * Shape::KT < span.end) {
      const PagedDecode& p = plan.p;
      const int piece = Team::rank() % Shape::kPieces;
      const Slot* s = slots_of(n);
      if (piece * Shape::kPiece < p.D) {
#pragma unroll 4
        for (int j = Team::rank() / Shape::kPieces; j < Shape::KT;
             j += Team::kSize / Shape::kPieces) {
          const bool live = s[j].pos >= 0;
          const int at = Shape::at(j, piece), column = piece * Shape::kPiece;
          copy_piece(keys(n) + at, static_cast<const T*>(p.k), s[j].k + column, live,
                     plan.vector_k);
          if (p.v)
            copy_piece(values(n) + at, static_cast<const T*>(p.v), s[j].v + column, live,
                       plan.vector_v);
        }
      }
    }
    ptx::cp_async_commit();  // an empty group too: NS - 1 groups are always in flight
  }

  __device__ void start() {
    for (int n = 0; n < NS - 1; ++n) keep(n, find(n));
    pending = find(NS - 1);
    Team::sync();  // the first slots, queries, rows and padding are written
    for (int n = 0; n < NS - 1; ++n) load(n);
  }

  // Tile n is there for all when this returns.
  __device__ void next(int n) {
    keep(n + NS - 1, pending);
    ptx::cp_async_wait<NS - 2>();
    Team::sync();  // tile n and the next slots are there for all; nobody reads tile n - 1
    pending = find(n + NS);
    load(n + NS - 1);
  }
};

}  // namespace
}  // namespace tokops::paged
