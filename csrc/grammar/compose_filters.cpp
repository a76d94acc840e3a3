#include "grammar/compose_filters.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "compose_filters";

Tensor compose_filters_op(const std::vector<Tensor>& masks) {
  STD_TORCH_CHECK(!masks.empty(), kOp, ": masks must hold at least one mask");
  const Tensor& first = masks.front();
  ComposeFilters p{};
  p.B = 1;
  for (const Tensor& mask : masks)
    if (mask.dim() == 2 && mask.size(0) != 1) p.B = mask.size(0);
  std::vector<Tensor> kept(masks.size());
  std::vector<Bitmask> found;
  for (size_t i = 0; i < masks.size(); ++i) {
    const std::string name = "masks[" + std::to_string(i) + "]";
    found.push_back(bitmask_of(kOp, name.c_str(), masks[i], p.B, first, &kept[i]));
    STD_TORCH_CHECK(masks[i].size(1) == first.size(1), kOp, ": ", name, " must have ",
                    first.size(1), " words a row, got ", masks[i].size(1));
  }
  p.W = first.size(1);
  Tensor out = torch::stable::new_empty(first, std::array<int64_t, 2>{p.B, p.W}, ScalarType::Int);
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr<int32_t>();
  Launch launch(first);
  for (size_t i = 0; i < found.size();) {
    p.count = 0;
    if (i) {  // what the launches before this one left
      p.masks[0] = p.out;
      p.strides[p.count++] = p.W;
    }
    for (; i < found.size() && p.count < kMostFilters; ++i, ++p.count) {
      p.masks[p.count] = found[i].words;
      p.strides[p.count] = found[i].stride;
    }
    compose_filters(p, launch.queue);
  }
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("compose_filters", TORCH_BOX(&compose_filters_op)); }
}  // namespace tokops
