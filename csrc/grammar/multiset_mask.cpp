#include "grammar/multiset_mask.h"

#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "multiset_mask";

Tensor multiset_mask_op(const Tensor& effect, const Tensor& used, const Tensor& budget) {
  check_tensor(kOp, "effect", effect, 2, {ScalarType::Char}, effect);
  const int64_t v = effect.size(0), letters = effect.size(1);
  STD_TORCH_CHECK(letters >= 1 && letters <= kMostLetters, kOp, ": effect must have 1..",
                  kMostLetters, " columns, got ", letters);
  check_tensor(kOp, "used", used, 2, {ScalarType::Short}, effect);
  check_shape(kOp, "used", used, {used.size(0), letters}, "[B, A]");
  check_tensor(kOp, "budget", budget, 2, {ScalarType::Short}, effect);
  check_shape(kOp, "budget", budget, {used.size(0), letters}, "[B, A]");
  Tensor out = torch::stable::new_empty(effect, std::array<int64_t, 2>{used.size(0), (v + 31) / 32},
                                        ScalarType::Int);
  if (out.numel() == 0) return out;
  const Tensor effects = contiguous(effect), counts = contiguous(used), limits = contiguous(budget);
  Launch launch(effect);
  multiset_mask({static_cast<const int8_t*>(effects.const_data_ptr()),
                 static_cast<const int16_t*>(counts.const_data_ptr()),
                 static_cast<const int16_t*>(limits.const_data_ptr()),
                 out.mutable_data_ptr<int32_t>(), v, used.size(0), int32_t(letters)},
                launch.queue);
  return out;
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("multiset_mask", TORCH_BOX(&multiset_mask_op)); }
}  // namespace tokops
