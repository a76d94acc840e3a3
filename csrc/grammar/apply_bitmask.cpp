#include "grammar/apply_bitmask.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "apply_bitmask_";

// -1 for a mask that is not used, else a row of the logits, and none of them twice.
void check_rows(const ApplyBitmask& p) {
  std::vector<bool> seen(static_cast<size_t>(p.B));
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t row = p.wide ? static_cast<const int64_t*>(p.rows)[i]
                               : int64_t(static_cast<const int32_t*>(p.rows)[i]);
    STD_TORCH_CHECK(row >= -1 && row < p.B, kOp, ": rows must be -1..", p.B - 1, ", got ", row);
    if (row < 0) continue;
    STD_TORCH_CHECK(!seen[size_t(row)], kOp, ": rows must differ, got ", row, " twice");
    seen[size_t(row)] = true;
  }
}

void apply_bitmask_op(const Tensor& logits, const Tensor& mask, const std::optional<Tensor>& rows,
                      double value, bool add) {
  STD_TORCH_CHECK(logits.dim() == 2, kOp, ": logits must have 2 dimensions, got ", logits.dim());
  ApplyBitmask p{};
  p.dtype = dtype_of(logits, kOp, "logits");
  STD_TORCH_CHECK(logits.size(1) <= 1 || logits.stride(1) == 1, kOp,
                  ": logits must have a contiguous last dimension");
  p.B = logits.size(0);
  p.V = logits.size(1);
  p.count = p.B;
  std::optional<Tensor> places;
  if (rows) {
    check_tensor(kOp, "rows", *rows, 1, {ScalarType::Int, ScalarType::Long}, logits);
    places = torch::stable::contiguous(*rows);
    p.rows = places->const_data_ptr();
    p.wide = rows->scalar_type() == ScalarType::Long;
    p.count = rows->size(0);
  }
  Tensor kept;
  p.mask = bitmask_of(kOp, "mask", mask, p.count, logits, &kept);
  if (kOnHost && p.rows) check_rows(p);
  if (p.count == 0 || logits.numel() == 0) return;
  p.logits = logits.mutable_data_ptr();
  p.stride = logits.stride(0);
  p.value = float(value);
  p.add = add;
  Launch launch(logits);
  apply_bitmask(p, launch.queue);
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("apply_bitmask", TORCH_BOX(&apply_bitmask_op)); }
}  // namespace tokops
