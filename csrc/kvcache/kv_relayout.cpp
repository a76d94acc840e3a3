#include "kvcache/kv_relayout.h"

#include "kvcache/pools.h"

namespace tokops {
namespace {

constexpr const char* kOp = "kv_relayout";

bool is_tile(const char* name, const std::string& order) {
  STD_TORCH_CHECK(order == "row" || order == "tile", kOp, ": ", name, " must be row or tile, got ",
                  order);
  return order == "tile";
}

Tensor kv_relayout_op(const Tensor& codes, int64_t codec, std::string source, std::string target) {
  const bool from_tile = is_tile("source", source), to_tile = is_tile("target", target);
  const PackedPool pool = packed_codes(kOp, "", codes, codec);
  STD_TORCH_CHECK(pool.P % kTileTokens == 0, kOp, ": the page size must be a multiple of ",
                  kTileTokens, ", got ", pool.P);
  STD_TORCH_CHECK(pool.kind == CodecKind::full || pool.D % 4 == 0, kOp,
                  ": codes must hold a multiple of 4 elements per row, got ", pool.D);
  const Tensor dense = torch::stable::contiguous(codes);
  if (from_tile == to_tile) return torch::stable::clone(dense);
  Tensor out = torch::stable::new_empty(codes, shape_of(codes));
  if (codes.numel() == 0) return out;
  KvRelayout p{dense.const_data_ptr(),
               out.mutable_data_ptr(),
               codes.size(0) * codes.size(1) * (pool.P / kTileTokens),
               pool.D,
               bits_of(pool.kind),
               int32_t(codes.element_size()),
               to_tile};
  Launch launch(codes);
  kv_relayout(p, launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("kv_relayout", TORCH_BOX(&kv_relayout_op)); }
}  // namespace tokops
