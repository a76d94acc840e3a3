// packed_decode on CUDA: the launch shape over parts and their splits. q_int8 is a permission that
// this kernel does not use: the tensor cores take decoded keys as fast, and exactly.
#include "attention/packed_decode.cuh"

namespace tokops {
namespace paged {
namespace {

int unit_bytes(Codec codec) { return codec == Codec::int2 ? 8 : 16; }
int unit_elements(Codec codec, DType dtype) {
  switch (codec) {
    case Codec::full:
      return dtype == DType::f32 ? 4 : 8;
    case Codec::int4:
    case Codec::int2:
      return 32;
    default:
      return 16;
  }
}

Packing packing_of(const Side& x, const PagedDecode& p) {
  Packing y{};
  y.unit = unit_bytes(x.codec);
  y.elements = unit_elements(x.codec, p.dtype);
  y.per_row = p.D / y.elements;
  y.next_row = kThreads / y.per_row;
  y.next = kThreads % y.per_row;
  const int64_t places = int64_t(reinterpret_cast<uintptr_t>(x.data)) | x.n | x.h | x.p | y.unit;
  y.copy = places % 16 == 0 ? 16 : places % 8 == 0 ? 8 : places % 4 == 0 ? 4 : 1;
  if (x.codec == Codec::full) return y;
  if (!x.channel) y.groups = p.D / x.group;
  const int64_t bases =
      int64_t(reinterpret_cast<uintptr_t>(x.scale) | reinterpret_cast<uintptr_t>(x.zero));
  y.scale_quads =
      x.s_g == 1 && (x.s_n | x.s_h | x.s_p) % 4 == 0 && bases % (x.wide_scale ? 16 : 8) == 0;
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

PackedPlan make_plan(const PackedDecode& d) {
  PackedPlan plan{};
  static_cast<Plan&>(plan) = plan_rows(d.base, "packed_decode");
  plan.marked = true;
  plan.n_parts = d.n_parts;
  for (int i = 0; i < d.n_parts; ++i) {
    plan.parts[i] = d.parts[i];
    const Side* sides[2] = {&d.parts[i].k, &d.parts[i].v};
    Ring& ring = plan.rings[i];
    for (int s = 0; s < 2; ++s) {
      const Packing& y = plan.packing[i][s] = packing_of(*sides[s], d.base);
      ring.tile += y.per_row * y.unit;
      if (s == 0) ring.keys = ring.tile;
      if (y.groups > plan.groups) plan.groups = y.groups;
    }
    // Two tiles are in the ring at least; of packed rows there is room for three.
    const bool full = d.parts[i].k.codec == Codec::full || d.parts[i].v.codec == Codec::full;
    const int bytes = ring.tile * (full ? 2 : 3);
    if (bytes > plan.ring_bytes) plan.ring_bytes = bytes;
  }
  for (int i = 0; i < d.n_parts; ++i) {
    const int fit = plan.ring_bytes / plan.rings[i].tile;
    plan.rings[i].stages = fit < kMaxStages ? fit : kMaxStages;
  }
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
  if (plan.row_tile == 16)
    paged::run_packed_mma(plan, q);
  else
    paged::run_packed_simt(plan, q);
  paged::run_merge(plan, q);
}

}  // namespace tokops
