#include "sampling/sample.h"

#include "common/bitmask_check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

LawRows rows_of(const char* op, const Tensor& logits, double temperature, int64_t top_k,
                double top_p, double min_p, const std::optional<Tensor>& per_row,
                const std::optional<Tensor>& mask, Tensor* kept) {
  STD_TORCH_CHECK(logits.dim() == 2, op, ": logits must have 2 dimensions, got ", logits.dim());
  const DType dtype = dtype_of(logits, op, "logits");
  const int64_t v = logits.size(1);
  STD_TORCH_CHECK(v >= 1 && v <= kMostVocabulary, op, ": the vocabulary must be 1..",
                  kMostVocabulary, " tokens, got ", v);
  if (per_row) {
    check_tensor(op, "per_row", *per_row, 2, {ScalarType::Float}, logits);
    check_shape(op, "per_row", *per_row, {logits.size(0), 4}, "[rows, 4]");
  }
  Bitmask bits{};
  if (mask) {
    bits = bitmask_of(op, "mask", *mask, logits.size(0), logits, kept);
    STD_TORCH_CHECK(bits.width > 0, op, ": mask must have at least 1 word a row");
  }
  return {logits.const_data_ptr(),
          logits.stride(0),
          dtype,
          logits.size(0),
          int32_t(v),
          {float(temperature), float(top_p), float(min_p), int32_t(top_k)},
          data_or_null<float>(per_row),
          bits,
          nullptr,
          0};
}

Tensor give_workspace(LawRows* p, const Tensor& like) {
  int64_t threads = 1;
  if constexpr (kOnHost) threads = torch::stable::get_num_threads();
  p->slots = int32_t(p->rows < threads ? p->rows : threads);
  Tensor w = torch::stable::new_empty(
      like, std::array<int64_t, 1>{kOnHost ? kRowFloats * p->slots * p->V : 0}, ScalarType::Float);
  p->workspace = w.mutable_data_ptr<float>();
  return w;
}

Tensor numbers(const char* op, const char* name, const Tensor& t, const Tensor& logits) {
  check_tensor(op, name, t, 1, {ScalarType::Long}, logits);
  check_shape(op, name, t, {logits.size(0)}, "[rows]");
  return contiguous(t);
}

Tensor sample_op(const Tensor& logits, int64_t seed, const Tensor& stream, const Tensor& position,
                 double temperature, int64_t top_k, double top_p, double min_p,
                 const std::optional<Tensor>& per_row, int64_t slot, int64_t use,
                 const std::optional<Tensor>& mask) {
  constexpr const char* op = "sample";
  const Tensor dense = dense_rows(logits);
  const auto settings = contiguous_or_none(per_row);
  Tensor bits;
  LawRows rows = rows_of(op, dense, temperature, top_k, top_p, min_p, settings, mask, &bits);
  const Tensor streams = numbers(op, "stream", stream, logits);
  const Tensor positions = numbers(op, "position", position, logits);
  Tensor tokens =
      torch::stable::new_empty(logits, std::array<int64_t, 1>{rows.rows}, ScalarType::Int);
  if (rows.rows == 0) return tokens;
  const Tensor workspace = give_workspace(&rows, logits);
  Launch launch(logits);
  sample({rows, uint64_t(seed), static_cast<const int64_t*>(streams.const_data_ptr()),
          static_cast<const int64_t*>(positions.const_data_ptr()), int32_t(slot), int32_t(use),
          tokens.mutable_data_ptr<int32_t>()},
         launch.queue);
  return tokens;
}

Tensor law_op(const Tensor& logits, double temperature, int64_t top_k, double top_p, double min_p,
              const std::optional<Tensor>& per_row, const std::optional<Tensor>& mask) {
  const Tensor dense = dense_rows(logits);
  const auto settings = contiguous_or_none(per_row);
  Tensor bits;
  LawRows rows = rows_of("law", dense, temperature, top_k, top_p, min_p, settings, mask, &bits);
  Tensor probs = torch::stable::new_empty(logits, std::array<int64_t, 2>{rows.rows, rows.V},
                                          ScalarType::Float);
  if (rows.rows == 0) return probs;
  const Tensor workspace = give_workspace(&rows, logits);
  Launch launch(logits);
  law({rows, probs.mutable_data_ptr<float>()}, launch.queue);
  return probs;
}

Tensor draw_op(const Tensor& probs, int64_t seed, const Tensor& stream, const Tensor& position,
               int64_t count, bool replace, int64_t use) {
  constexpr const char* op = "draw";
  check_tensor(op, "probs", probs, 2, {ScalarType::Float}, probs);
  const int64_t v = probs.size(1);
  STD_TORCH_CHECK(v >= 1 && v <= kMostVocabulary, op, ": the vocabulary must be 1..",
                  kMostVocabulary, " tokens, got ", v);
  STD_TORCH_CHECK(count >= 0 && count <= 1024, op, ": count must be 0..1024, got ", count);
  const Tensor dense = dense_rows(probs);
  const Tensor streams = numbers(op, "stream", stream, probs);
  const Tensor positions = numbers(op, "position", position, probs);
  Tensor tokens = torch::stable::new_empty(probs, std::array<int64_t, 2>{probs.size(0), count},
                                           ScalarType::Int);
  if (tokens.numel() == 0) return tokens;
  Launch launch(probs);
  draw({static_cast<const float*>(dense.const_data_ptr()), dense.stride(0), probs.size(0),
        int32_t(v), int32_t(count), replace, uint64_t(seed),
        static_cast<const int64_t*>(streams.const_data_ptr()),
        static_cast<const int64_t*>(positions.const_data_ptr()), int32_t(use),
        tokens.mutable_data_ptr<int32_t>()},
       launch.queue);
  return tokens;
}

}  // namespace
TOKOPS_IMPL(m) {
  m.impl("sample", TORCH_BOX(&sample_op));
  m.impl("law", TORCH_BOX(&law_op));
  m.impl("draw", TORCH_BOX(&draw_op));
}
}  // namespace tokops
