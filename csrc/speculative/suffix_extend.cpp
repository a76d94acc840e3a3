// Tokens behind indexed sequences. A structure of the host: on other devices the reference runs.
#include "common/op.h"

#if !TOKOPS_BACKEND_IS_CUDA
#include "speculative/suffix_arguments.h"

namespace tokops {
namespace {

constexpr const char* kOp = "suffix_extend";

void suffix_extend_op(const Tensor& heads, const Tensor& text, const Tensor& states,
                      const Tensor& edges, const Tensor& places, const Tensor& tokens,
                      const Tensor& counts) {
  const SuffixArguments indices{kOp, heads, text, states, edges, places};
  indices.check();
  check_tensor(kOp, "tokens", tokens, 2, {ScalarType::Int}, heads);
  check_tensor(kOp, "counts", counts, 1, {ScalarType::Int}, heads);
  const int64_t batch = indices.batch(), width = tokens.size(1);
  check_shape(kOp, "tokens", tokens, {batch, width}, "[B, T]");
  check_shape(kOp, "counts", counts, {batch}, "[B]");
  const Tensor dense = torch::stable::contiguous(tokens);
  const Tensor lengths = torch::stable::contiguous(counts);
  check_range(kOp, "counts", lengths, 0, width, "0.." + std::to_string(width));
  const auto* count = static_cast<const int32_t*>(lengths.const_data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t room = indices.capacity() - indices.index(b).head->tokens;
    STD_TORCH_CHECK(count[b] <= room, kOp, ": counts must be at most the room left, ", room,
                    " for sequence ", b, ", got ", count[b]);
  }
  const auto* token = static_cast<const int32_t*>(dense.const_data_ptr());
  Launch launch(heads);
  launch.queue.parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      SuffixIndex index = indices.index(b);
      for (int32_t i = 0; i < count[b]; ++i) {
        // A break becomes a token that occurs nowhere else: nothing matches across it.
        const int32_t t = token[b * width + i];
        index.append(t < 0 ? -1 - index.head->tokens : t);
      }
    }
  });
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("suffix_extend", TORCH_BOX(&suffix_extend_op)); }
}  // namespace tokops
#endif
