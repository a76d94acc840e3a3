#include "grammar/byte_marginal.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "byte_marginal";

// Runs inside the sorted tokens, ids inside the vocabulary, offsets that ascend inside the bytes.
void check_values(const ByteMarginal& p) {
  for (int64_t i = 0; i < p.S; ++i) {
    STD_TORCH_CHECK(p.order[i] >= 0 && p.order[i] < p.V, kOp, ": order must be 0..", p.V - 1,
                    ", got ", p.order[i]);
    STD_TORCH_CHECK(p.offsets[i] >= 0 && p.offsets[i] <= p.offsets[i + 1], kOp,
                    ": offsets must ascend from 0, got ", p.offsets[i], " and ", p.offsets[i + 1]);
  }
  STD_TORCH_CHECK(p.offsets[p.S] <= p.size, kOp, ": offsets must be at most ", p.size, ", got ",
                  p.offsets[p.S]);
  for (int64_t b = 0; b < p.B; ++b)
    STD_TORCH_CHECK(p.low[b] >= 0 && p.low[b] <= p.high[b] && p.high[b] <= p.S && p.depth[b] >= 0,
                    kOp, ": 0 <= low <= high <= ", p.S, " and depth >= 0 must hold, got ", p.low[b],
                    ", ", p.high[b], " and ", p.depth[b], " in row ", b);
}

Tensor byte_marginal_op(const Tensor& logp, const Tensor& order, const Tensor& offsets,
                        const Tensor& bytes, const Tensor& low, const Tensor& high,
                        const Tensor& depth) {
  STD_TORCH_CHECK(logp.dim() == 2, kOp, ": logp must have 2 dimensions, got ", logp.dim());
  ByteMarginal p{};
  p.dtype = dtype_of(logp, kOp, "logp");
  p.B = logp.size(0);
  p.V = logp.size(1);
  check_tensor(kOp, "order", order, 1, {ScalarType::Int}, logp);
  p.S = order.size(0);
  check_tensor(kOp, "offsets", offsets, 1, {ScalarType::Int}, logp);
  check_shape(kOp, "offsets", offsets, {p.S + 1}, "[S + 1]");
  check_tensor(kOp, "bytes", bytes, 1, {ScalarType::Byte}, logp);
  p.size = bytes.size(0);
  for (const auto& [name, t] :
       {std::pair{"low", &low}, std::pair{"high", &high}, std::pair{"depth", &depth}}) {
    check_tensor(kOp, name, *t, 1, {ScalarType::Int}, logp);
    check_shape(kOp, name, *t, {p.B}, "[B]");
  }
  const Tensor ids = contiguous(order), begins = contiguous(offsets), text = contiguous(bytes),
               lows = contiguous(low), highs = contiguous(high), depths = contiguous(depth);
  p.order = static_cast<const int32_t*>(ids.const_data_ptr());
  p.offsets = static_cast<const int32_t*>(begins.const_data_ptr());
  p.bytes = static_cast<const uint8_t*>(text.const_data_ptr());
  p.low = static_cast<const int32_t*>(lows.const_data_ptr());
  p.high = static_cast<const int32_t*>(highs.const_data_ptr());
  p.depth = static_cast<const int32_t*>(depths.const_data_ptr());
  if (kOnHost) check_values(p);
  Tensor out =
      torch::stable::new_empty(logp, std::array<int64_t, 2>{p.B, kByteBins}, ScalarType::Float);
  if (p.B == 0) return out;
  const Tensor from = dense_rows(logp);
  p.logp = from.const_data_ptr();
  p.stride = from.stride(0);
  p.out = out.mutable_data_ptr<float>();
  Launch launch(logp);
  byte_marginal(p, launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("byte_marginal", TORCH_BOX(&byte_marginal_op)); }
}  // namespace tokops
