// packed_decode on CUDA: the launch shape over parts and their splits. q_int8 is a permission that
// this kernel does not use: the tensor cores take decoded keys as fast, and exactly.
#include "attention/packed_decode.cuh"
#include "kvcache/codec.h"

namespace tokops {
namespace paged {
namespace {

int row_bytes(Codec codec, const PagedDecode& p) {
  switch (codec) {
    case Codec::full:
      return p.D * (p.dtype == DType::f32 ? 4 : 2);
    case Codec::int4:
      return p.D / 2;
    case Codec::int2:
      return p.D / 4;
    default:
      return p.D;
  }
}

Packing packing_of(const Side& x, const PagedDecode& p) {
  Packing y{};
  y.row = row_bytes(x.codec, p);  // a multiple of 8
  const int64_t places = int64_t(reinterpret_cast<uintptr_t>(x.data)) | x.n | x.h | x.p | y.row;
  y.chunk = places % 16 == 0 ? 16 : places % 8 == 0 ? 8 : 4;
  y.copy = places % 4 == 0 ? y.chunk : 1;
  y.chunks = y.row / y.chunk;
  y.next_row = kThreads / y.chunks;
  y.next_chunk = kThreads % y.chunks;
  if (x.codec != Codec::full && !x.channel) y.groups = p.D / x.group;
  return y;
}

// Keys of a part that a group of rows may read, from shapes alone.
int64_t most_keys(const PackedPlan& plan, const Part& part) {
  const PagedDecode& p = plan.p;
  int64_t keys = int64_t(part.pages) * part.P;
  if (p.selected && p.sel_k < keys) keys = p.sel_k;
  const int64_t reach = int64_t(p.window) + p.T;
  if (p.window && !part.positions && reach < keys) keys = reach;
  return keys;
}

// Every part gets at least one split, and its share of those that fill the device.
void share_splits(PackedPlan& plan) {
  int64_t all = 0;
  for (int i = 0; i < plan.n_parts; ++i) all += most_keys(plan, plan.parts[i]);
  const int64_t wanted = wanted_splits(plan);
  for (int i = 0; i < plan.n_parts; ++i) {
    const int64_t keys = most_keys(plan, plan.parts[i]), most = (keys + kChunk - 1) / kChunk;
    const int64_t share = all ? (wanted * keys + all - 1) / all : 1;
    const int64_t n = share < most ? share : most;
    plan.first_split[i + 1] = plan.first_split[i] + int(n > 1 ? n : 1);
  }
  plan.splits = plan.first_split[plan.n_parts];
}

// The last element of scales, counted from the first.
int64_t scales_end(const Side& x, const PagedDecode& p, int64_t pages, int64_t slots) {
  return (pages - 1) * x.s_n + (p.Hkv - 1) * x.s_h + (slots - 1) * x.s_p +
         (p.D / x.group - 1) * x.s_g;
}

// What warps can stream: full rows without norms, and codes with scales of a token in one word
// beside their zeros.
bool streams(const Side& x, const PagedDecode& p, int64_t pages, int64_t slots) {
  if (x.codec == Codec::full) return !x.norm;
  if (scales_end(x, p, pages, slots) > UINT32_MAX) return false;
  return !x.channel && !(x.wide_scale && x.zero) && x.group % kPackBlock == 0 && p.D % x.group == 0;
}
bool streams(const PackedDecode& d) {
  bool all = d.base.D == 64 || d.base.D == 128;
  for (int i = 0; i < d.n_parts; ++i) {
    const Part& part = d.parts[i];
    const bool alike = (part.k.codec == Codec::full) == (part.v.codec == Codec::full);
    all = all && alike && streams(part.k, d.base, part.pages_in_pool, part.P) &&
          streams(part.v, d.base, part.pages_in_pool, part.P);
  }
  return all;
}

Steps steps_of(const Side& x, const Packing& y, int64_t pages, int64_t slots) {
  Steps s{};
  const int64_t places = int64_t(reinterpret_cast<uintptr_t>(x.data)) | x.n | x.h | x.p;
  s.aligned = places % 16 == 0 && ((pages - 1) * x.n + (slots - 1) * x.p) / 16 <= UINT32_MAX;
  s.shift = shift_of(y.row / 16);
  s.page = uint32_t(x.n / 16);
  s.slot = uint32_t(x.p / 16);
  s.scale_page = uint32_t(x.s_n);
  s.scale_head = uint32_t(x.s_h);
  s.scale_slot = uint32_t(x.s_p);
  s.scale_group = uint32_t(x.s_g);
  const auto scales = reinterpret_cast<uintptr_t>(x.scale) | reinterpret_cast<uintptr_t>(x.zero);
  s.paired = y.groups % 2 == 0 && x.s_g == 1 && !x.wide_scale && scales % 4 == 0 &&
             (x.s_n | x.s_h | x.s_p) % 2 == 0;
  return s;
}

// Bytes of the warps' rings, two tiles of codes or of the only kind there is, and tiles in them.
void place_stream_rings(PackedPlan& plan, const PackedDecode& d) {
  int codes = 0, full = 0;
  const auto tile = [&](int i) {
    const bool is_full = d.parts[i].k.codec == Codec::full;
    return plan.rings[i].tile * (is_full ? full_keys(d.base.D) : kCodeKeys);
  };
  for (int i = 0; i < d.n_parts; ++i) {
    int& most = d.parts[i].k.codec == Codec::full ? full : codes;
    if (tile(i) > most) most = tile(i);
  }
  plan.stream_ring = codes ? kStreamStages * codes : kStreamStages * full;
  if (plan.stream_ring < full) plan.stream_ring = full;
  for (int i = 0; i < d.n_parts; ++i)
    plan.rings[i].stages = plan.stream_ring / tile(i) < kStreamStages ? 1 : kStreamStages;
  if (plan.row_tile == 8 && plan.stream_ring <= kSmallRing) plan.resident = kSmallRingBlocks;
  if (plan.row_tile > 8 && d.base.D > 64) plan.resident = kLargeBlocks;
}

// Tiles in the rings that blocks share, and the bytes of all rings.
void place_rings(PackedPlan& plan, const PackedDecode& d) {
  for (int i = 0; i < d.n_parts; ++i) {
    const bool full = d.parts[i].k.codec == Codec::full || d.parts[i].v.codec == Codec::full;
    // Two tiles are in the ring at least; of packed rows there is room for three.
    const int bytes = plan.rings[i].tile * (full ? 2 : 3);
    if (bytes > plan.ring_bytes) plan.ring_bytes = bytes;
  }
  for (int i = 0; i < d.n_parts; ++i) {
    const int fit = plan.ring_bytes / plan.rings[i].tile;
    plan.rings[i].stages = fit < kMaxStages ? fit : kMaxStages;
  }
}

PackedPlan make_plan(const PackedDecode& d) {
  PackedPlan plan{};
  static_cast<Plan&>(plan) = plan_rows(d.base, "packed_decode", streams(d));
  plan.n_parts = d.n_parts;
  for (int i = 0; i < d.n_parts; ++i) {
    plan.parts[i] = d.parts[i];
    plan.page_shifts[i] = shift_of(d.parts[i].P);
    const Side* sides[2] = {&d.parts[i].k, &d.parts[i].v};
    Ring& ring = plan.rings[i];
    for (int s = 0; s < 2; ++s) {
      const Packing& y = plan.packing[i][s] = packing_of(*sides[s], d.base);
      plan.steps[i][s] = steps_of(*sides[s], y, d.parts[i].pages_in_pool, d.parts[i].P);
      ring.tile += y.row;
      if (s == 0) ring.keys = ring.tile;
      if (y.groups > plan.groups) plan.groups = y.groups;
    }
  }
  if (plan.streamed)
    place_stream_rings(plan, d);
  else
    place_rings(plan, d);
  share_splits(plan);
  place_partials(plan);
  return plan;
}

// A key's part writes its scores; what no part holds stays -inf.
__global__ void clear_scores(float* scores, int64_t n) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    scores[i] = -INFINITY;
}

}  // namespace
}  // namespace paged

size_t packed_decode_workspace(const PackedDecode& d) {
  return paged::partial_bytes(paged::make_plan(d));
}

void packed_decode(const PackedDecode& d, const Queue& q) {
  const paged::PackedPlan plan = paged::make_plan(d);
  const PagedDecode& p = plan.p;
  const int64_t rows = int64_t(p.B) * p.T * p.Hq;
  if (rows == 0) return;
  if (p.scores && p.score_len > 0) {
    const int64_t n = rows * p.score_len, blocks = (n + 1023) / 1024;
    launch(paged::clear_scores, dim3(unsigned(blocks < 65535 ? blocks : 65535)), dim3(256), 0, q,
           p.scores, n);
  }
  if (plan.streamed)
    paged::run_packed_streams(plan, q);
  else if (plan.row_tile == 16)
    paged::run_packed_mma(plan, q);
  else
    paged::run_packed_simt(plan, q);
  paged::run_merge(plan, q);
}

}  // namespace tokops
