// What the CUDA parts of packed_decode share: the launch shape, and which keys a split has in its
// part.
#pragma once
#include "attention/paged_decode.cuh"
#include "attention/parts.h"

namespace tokops::paged {

inline constexpr int kMaxStages = 4;  // tiles in the ring
// A streamed plan: tiles in a ring, if they fit, and keys of a tile of codes.
inline constexpr int kStreamStages = 2, kCodeKeys = 32;
inline constexpr int kSmallRing = 10 * 1024, kSmallRingBlocks = 4;  // of which more blocks fit
inline constexpr int kLargeBlocks = 2;  // of many rows and dimensions, for want of registers
inline int full_keys(int D) { return 2048 / D; }

// How one side of a part is copied to shared memory.
struct Packing {
  int row, chunk, chunks;    // bytes of a row, bytes of a chunk of it, chunks of a row
  int copy;                  // bytes that one copy may move: those of a chunk, or 1
  int next_row, next_chunk;  // what a thread adds to get to its next chunk
  int groups;                // scales of a token; 0 where it has none of its own
};

// Tiles of a part that are in shared memory as they are packed, the one at work included.
struct Ring {
  int stages, tile, keys;  // tiles; bytes of a key and its value, and of the key alone
};

// Of a streamed side: what lies between pages and between slots, data in pieces of 16 bytes and
// scales in elements.
struct Steps {
  bool aligned;  // data and their strides, to such pieces
  int shift;     // a row has 1 << shift pieces
  bool paired;   // scales of two groups are one aligned word
  uint32_t page, slot, scale_page, scale_head, scale_slot, scale_group;
};

// Host-made. Splits are numbered part by part.
struct PackedPlan : Plan {
  Part parts[kMaxParts];
  Packing packing[kMaxParts][2];  // of keys and of values
  Ring rings[kMaxParts];
  Steps steps[kMaxParts][2];
  int page_shifts[kMaxParts];
  int n_parts;
  int first_split[kMaxParts + 1];
  int stream_ring;         // bytes of a warp's ring
  int ring_bytes, groups;  // per key of a tile: packed bytes in flight, and scales of a token
};
static_assert(sizeof(PackedPlan) < 32 * 1024);  // a kernel's parameters

void run_packed_simt(const PackedPlan& plan, const Queue& q);     // any dtype, row_tile 1, 4, 8
void run_packed_mma(const PackedPlan& plan, const Queue& q);      // bf16 and f16, row_tile 16
void run_packed_streams(const PackedPlan& plan, const Queue& q);  // bf16 and f16, streamed

namespace {

__device__ inline int clamp_int(int x, int lo, int hi) { return x < lo ? lo : x > hi ? hi : x; }
__device__ inline Extent extent_of(const Part& part, const Work& w) {
  if (w.t0 >= w.view.rows || part.pages_in_pool <= 0) return {0, 0, 0};
  const int len =
      clamp_int(part.lens[w.b * part.lens_b + w.hkv * part.lens_h], 0, part.pages * part.P);
  if (part.positions) return {0, 0, len};
  const int length = w.view.length;
  const int first = part.first ? clamp_int(part.first[w.b], 0, length) : 0;
  const int end = clamp_int(len, 0, length - first);
  return {first, part.begin ? clamp_int(part.begin[w.b], 0, end) : 0, end};
}

// First of n ascending entries, -1 counting as the largest, that is not below `value`. All lanes
// of a warp take part: each looks at the end of one piece of what is left.
__device__ inline int lower_bound(const int32_t* list, int n, int value) {
  int lo = 0;
  while (n > 0) {
    const int step = (n + 31) / 32, at = (threadIdx.x % 32 + 1) * step - 1;
    const bool below = at < n && unsigned(list[lo + at]) < unsigned(value);
    const int whole = __popc(__ballot_sync(kFullWarp, below)) * step;
    lo += whole;
    n = n - whole < step - 1 ? n - whole : step - 1;
  }
  return lo;
}

// The rows of a block and the keys they read of the split's part: entries of the list, slots of a
// reordered part, or else positions.
__device__ inline Work work_of(const PackedPlan& plan, int64_t group, int block, int split) {
  Work w = rows_of(plan, group, block);
  w.split = split;
  while (split >= plan.first_split[w.part + 1]) ++w.part;
  const Part& part = plan.parts[w.part];
  const Extent x = w.extent = extent_of(part, w);
  if (x.len <= x.least) return w;
  if (part.positions) {
    w.end = w.list ? lower_bound(w.list, w.list_size, INT32_MAX) : x.len;
  } else {
    key_range(plan.p, w.view, w.b, w.t0, w.t1, &w.begin, &w.end);
    w.begin = w.begin > x.first + x.least ? w.begin : x.first + x.least;
    w.end = w.end < x.first + x.len ? w.end : x.first + x.len;
    if (w.list) {
      w.end = w.begin < w.end ? lower_bound(w.list, w.list_size, w.end) : 0;
      w.begin = lower_bound(w.list, w.end, w.begin);
    }
  }
  if (w.end < w.begin) w.end = w.begin;
  w.chunk = split_size(w.end - w.begin, plan.first_split[w.part + 1] - plan.first_split[w.part]);
  return w;
}

// Where one key of a tile is kept; position -1 where there is none.
struct alignas(16) PackedSlot {
  int page, slot, pos;
};

// The key with index i of a block's work, -1 for none. Its page is as the table has it.
__device__ inline PackedSlot find_slot(const PackedPlan& plan, const Work& w, int i) {
  const PackedSlot none{0, 0, -1};
  if (i < 0) return none;
  const Part& part = plan.parts[w.part];
  const int64_t head = int64_t(w.b) * plan.p.Hkv + w.hkv;
  int pos = i;
  if (w.list) {
    pos = w.list[i];
  } else if (part.positions) {
    pos = part.positions[head * part.pages * part.P + i];
  }
  if (pos < 0 || pos >= w.view.length) return none;
  const Extent x = w.extent;
  int64_t slot = pos - x.first;
  if (part.positions && !w.list) slot = i;
  if (part.positions && w.list)
    slot = pos < part.where_len ? int64_t(part.where[head * part.where_len + pos]) - part.slot_base
                                : -1;
  if (slot < x.least || slot >= x.len) return none;
  const int index = page_of(int(slot), part.P, plan.page_shifts[w.part]);
  return {part.table[w.b * part.table_b + w.hkv * part.table_h + index], int(slot) - index * part.P,
          pos};
}
// Bad table entries are clamped.
__device__ inline PackedSlot inside(const Part& part, PackedSlot f) {
  const int64_t last = part.pages_in_pool - 1;
  f.page = f.page < 0 ? 0 : f.page > last ? int(last) : f.page;
  return f;
}

// What streams over parts have in common: what they are made of, and where a split's keys lie.
struct PartStream {
  using Plan = PackedPlan;
  using Slot = PackedSlot;
  static constexpr bool kPacked = true;

  const PackedPlan& plan;
  unsigned char* const data;
  PackedSlot* const slots;
  const Work& w;
  const Span span;

  __device__ PartStream(const PackedPlan& plan, const Work& w, Span span, unsigned char* data,
                        void* slots)
      : plan(plan), data(data), slots(static_cast<PackedSlot*>(slots)), w(w), span(span) {}

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

  __device__ bool scattered() const { return w.list || part().positions; }
  __device__ const Part& part() const { return plan.parts[w.part]; }
  __device__ const Side& side(int s) const { return s ? part().v : part().k; }
  __device__ const Packing& packing(int s) const { return plan.packing[w.part][s]; }
};

}  // namespace
}  // namespace tokops::paged
