#include "kvcache/kv_transfer.h"

#include "kvcache/pools.h"

namespace tokops {
namespace {

using torch::stable::contiguous;
constexpr const char* kOp = "kv_transfer";

// Whether a row means the same in both pools, so that it moves as it is. An int3 row is an int4 row
// too; a head's grid is the same where both pools point to one.
bool stores_alike(const PackedPool& from, const PackedPool& to) {
  if (from.kind != to.kind && !(from.kind == CodecKind::int3 && to.kind == CodecKind::int4))
    return false;
  if (to.kind == CodecKind::full) return from.dtype == to.dtype;
  if (from.geometry != to.geometry || from.scale_dtype != to.scale_dtype) return false;
  if ((from.zero == nullptr) != (to.zero == nullptr)) return false;
  if (to.geometry == Geometry::head)
    return from.scale == to.scale && from.zero == to.zero && from.scale_n == 0 && to.scale_n == 0;
  return to.geometry == Geometry::token && from.group == to.group;
}

void check_table_entry(const char* name, const PageTable& t, const PackedPool& pool, int64_t b,
                       int64_t h, int64_t slot, const char* slots) {
  const int64_t cap = int64_t(t.pages) * pool.P;
  STD_TORCH_CHECK(slot >= 0 && slot < cap, kOp, ": ", slots, " must be 0..", cap - 1,
                  " (pages * page size - 1), got ", slot, " for sequence ", b, ", head ", h);
  STD_TORCH_CHECK(page_of(t, pool, b, h, slot) >= 0, kOp, ": ", name, " entries must be 0..",
                  pool.pages - 1, " for pages in use, sequence ", b, " has others");
}

void check_values(const KvTransfer& p) {
  for (int64_t list = 0; list < int64_t(p.B) * p.Hkv; ++list) {
    const int64_t b = list / p.Hkv, h = list % p.Hkv;
    STD_TORCH_CHECK(p.counts[list] >= 0 && p.counts[list] <= p.n, kOp, ": counts must be 0..", p.n,
                    ", got ", p.counts[list], " for sequence ", b, ", head ", h);
    for (int64_t j = 0; j < p.counts[list]; ++j) {
      check_table_entry("source_table", p.from_table, p.from[0], b, h, p.slots_from[list * p.n + j],
                        "slots_from");
      check_table_entry("target_table", p.to_table, p.to[0], b, h, p.slots_to[list * p.n + j],
                        "slots_to");
    }
  }
}

void check_target(const char* of, const PackedPool& to, const PackedPool& from) {
  STD_TORCH_CHECK(to.kind == CodecKind::full || to.geometry != Geometry::channel, kOp, ": target_",
                  of, "_scale must not have channel geometry: a token alone makes no group");
  STD_TORCH_CHECK(to.D == from.D, kOp, ": target_", of, "_codes must hold ", from.D,
                  " elements per row like the source, got ", to.D);
}

void kv_transfer_op(const Tensor& source_k_codes, const Tensor& source_k_scale,
                    const Tensor& source_k_zero, const Tensor& source_v_codes,
                    const Tensor& source_v_scale, const Tensor& source_v_zero,
                    const Tensor& source_table, const Tensor& target_k_codes,
                    const Tensor& target_k_scale, const Tensor& target_k_zero,
                    const Tensor& target_v_codes, const Tensor& target_v_scale,
                    const Tensor& target_v_zero, const Tensor& target_table,
                    const Tensor& slots_from, const Tensor& slots_to, const Tensor& counts,
                    int64_t source_k_codec, int64_t source_v_codec, int64_t target_k_codec,
                    int64_t target_v_codec) {
  KvTransfer p{};
  p.from[0] =
      packed_pool(kOp, "source_k_", source_k_codes, source_k_scale, source_k_zero, source_k_codec);
  p.from[1] =
      packed_pool(kOp, "source_v_", source_v_codes, source_v_scale, source_v_zero, source_v_codec);
  p.to[0] =
      packed_pool(kOp, "target_k_", target_k_codes, target_k_scale, target_k_zero, target_k_codec);
  p.to[1] =
      packed_pool(kOp, "target_v_", target_v_codes, target_v_scale, target_v_zero, target_v_codec);
  check_pair(kOp, "source_", source_v_codes, source_k_codes);
  check_pair(kOp, "target_", target_v_codes, target_k_codes);
  check_device(target_k_codes, source_k_codes, kOp, "target_k_codes");
  check_target("k", p.to[0], p.from[0]);
  check_target("v", p.to[1], p.from[1]);
  const Tensor from_table = contiguous(source_table), to_table = contiguous(target_table);
  const int64_t heads = check_table(kOp, "source_table", from_table, source_k_codes);
  const int64_t to_heads = check_table(kOp, "target_table", to_table, target_k_codes);
  STD_TORCH_CHECK(to_table.size(0) == from_table.size(0) && to_heads == heads, kOp,
                  ": target_table must have the ", from_table.size(0), " rows and ", heads,
                  " KV heads of the source, got ", to_table.size(0), " and ", to_heads);
  check_tensor(kOp, "slots_from", slots_from, 3, {ScalarType::Int}, source_k_codes);
  check_shape(kOp, "slots_from", slots_from, {from_table.size(0), heads, slots_from.size(2)},
              "[B, Hkv, n]");
  check_tensor(kOp, "slots_to", slots_to, 3, {ScalarType::Int}, source_k_codes);
  check_shape(kOp, "slots_to", slots_to, shape_of(slots_from), "the shape of slots_from");
  check_tensor(kOp, "counts", counts, 2, {ScalarType::Int}, source_k_codes);
  check_shape(kOp, "counts", counts, {from_table.size(0), heads}, "[B, Hkv]");
  const Tensor from = contiguous(slots_from), to = contiguous(slots_to), live = contiguous(counts);
  p.from_table = page_table(from_table);
  p.to_table = page_table(to_table);
  p.slots_from = static_cast<const int32_t*>(from.const_data_ptr());
  p.slots_to = static_cast<const int32_t*>(to.const_data_ptr());
  p.counts = static_cast<const int32_t*>(live.const_data_ptr());
  p.B = int32_t(from_table.size(0));
  p.Hkv = int32_t(heads);
  p.n = int32_t(from.size(2));
  for (int side = 0; side < 2; ++side) p.verbatim[side] = stores_alike(p.from[side], p.to[side]);
  if (kOnHost) check_values(p);
  if (from.numel() == 0) return;
  Launch launch(source_k_codes);
  kv_transfer(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("kv_transfer", TORCH_BOX(&kv_transfer_op)); }
}  // namespace tokops
