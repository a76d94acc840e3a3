// How full-precision pages reach shared memory: the stream of paged_decode.
#pragma once
#include "attention/paged_decode.tile.cuh"

namespace tokops::paged {
namespace {

// Where one key of a tile lies; position -1 where there is none.
struct Slot {
  int64_t k, v;  // byte offsets into the pools
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
    const int page_index = page_of(pos, plan.p.P, plan.page_shift);
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
        (page * p.k_n + w.hkv * p.k_h + f.offset * p.k_p) * int(sizeof(T)),
        (page * p.v_n + w.hkv * p.v_h + f.offset * p.v_p) * int(sizeof(T)), f.pos};
  }

  // Starts the copies of tile n: of a piece of every so many rows. Keys that are not there become
  // zeros: 0 times garbage may be NaN.
  __device__ void load(int n) const {
    if (span.begin + n * Shape::KT < span.end) {
      if (!plan.vector_k || (plan.p.v && !plan.vector_v))
        copy_elements(n);
      else if (plan.p.v)
        copy_pieces<true>(n);
      else
        copy_pieces<false>(n);
    }
    ptx::cp_async_commit();  // an empty group too: NS - 1 groups are always in flight
  }
  static constexpr int kRows = Team::kSize / Shape::kPieces;  // copied at a time
  template <bool kValues>
  __device__ __forceinline__ void copy_pieces(int n) const {
    const int piece = Team::rank() % Shape::kPieces, first = Team::rank() / Shape::kPieces;
    if (piece * Shape::kPiece >= plan.p.D) return;
    const char* k = static_cast<const char*>(plan.p.k) + piece * 16;
    const char* v = static_cast<const char*>(plan.p.v) + piece * 16;
    const Slot* s = slots_of(n) + first;
    const ptx::Shared to = ptx::shared_at(keys(n));
#pragma unroll
    for (int i = 0; i < Shape::KT / kRows; ++i) {
      const Slot from = s[i * kRows];
      const int at = Shape::at(first + i * kRows, piece) * int(sizeof(T));
      ptx::cp_async<16>(to + at, k + from.k, from.pos >= 0);
      if (kValues)
        ptx::cp_async<16>(to + at + Shape::kElements * int(sizeof(T)), v + from.v, from.pos >= 0);
    }
  }
  __device__ void copy_elements(int n) const {
#pragma unroll 1
    for (int i = Team::rank(); i < Shape::KT * plan.p.D; i += Team::kSize) {
      const int j = i / plan.p.D, d = i - j * plan.p.D;
      const Slot from = slots_of(n)[j];
      const int at = Shape::at(j, d / Shape::kPiece) + d % Shape::kPiece;
      const T zero = from_float<T>(0.f);
      const auto element = [&](const void* pool, int64_t offset) {
        const char* x = static_cast<const char*>(pool) + offset;
        return from.pos >= 0 ? reinterpret_cast<const T*>(x)[d] : zero;
      };
      keys(n)[at] = element(plan.p.k, from.k);
      if (plan.p.v) values(n)[at] = element(plan.p.v, from.v);
    }
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
