#include "attention/paged_decode.h"

#include <tuple>

#include "attention/decode_arguments.h"

namespace tokops {
namespace {

struct Arguments : DecodeArguments {
  Tensor k, table;
  OptTensor v;
};

void fill_pools(PagedDecode& p, const Arguments& a) {
  const bool per_head = a.table.dim() == 3;
  p.k = a.k.const_data_ptr();
  p.k_n = a.k.stride(0), p.k_h = per_head ? 0 : a.k.stride(1), p.k_p = a.k.stride(2);
  p.v = a.v ? a.v->const_data_ptr() : nullptr;
  if (a.v) p.v_n = a.v->stride(0), p.v_h = per_head ? 0 : a.v->stride(1), p.v_p = a.v->stride(2);
  p.pages_in_pool = a.k.size(0);
  p.P = a.k.size(2);
  p.pages = a.table.size(-1);
  p.table = data_or_null<int32_t>(a.table);
  p.table_b = a.table.stride(0), p.table_h = per_head ? a.table.stride(1) : 0;
}

DecodeResults run(Arguments a, const std::string* reduce, std::optional<int64_t> max_len) {
  const int64_t heads =
      check_pool(a.op, a.k, "k_pages", a.table, a.lens, a.q.dim() > 0 ? a.q.size(0) : 0);
  check_queries(a, heads);
  check_dtype(a.q, a.k.scalar_type(), a.op, "q");
  check_device(a.q, a.k, a.op, "q");
  STD_TORCH_CHECK(a.q.size(3) == a.k.size(3), a.op, ": q has head dimension ", a.q.size(3),
                  ", the pages ", a.k.size(3));
  if (a.v) check_same_pool(a.op, *a.v, a.k);
  check_extras(a, heads);
  if (a.table.stride(-1) != 1) a.table = torch::stable::contiguous(a.table);

  PagedDecode p{};
  fill_arguments(p, a, heads);
  fill_pools(p, a);
  if (kOnHost) {
    check_page_values(
        a.op, PageValues{p.table, p.table_b, p.table_h, p.seq_lens, p.lens_b, p.lens_h, p.B, p.Hkv,
                         p.P, p.pages, p.pages_in_pool, p.q_lens, p.starts, p.T});
    if (p.selected) check_selection(a.op, p);
  }
  DecodeResults r = new_results(p, a, a.v.has_value());
  if (reduce) {
    STD_TORCH_CHECK(*reduce == "none" || *reduce == "max" || *reduce == "sum", a.op,
                    ": reduce must be none, max or sum, got ", *reduce);
    const int64_t all = int64_t(p.pages) * p.P;
    STD_TORCH_CHECK(!max_len || (*max_len >= 0 && *max_len <= all), a.op, ": max_len must be 0..",
                    all, " (pages * page size), got ", max_len.value_or(0));
    p.reduce = *reduce == "none"  ? ScoreReduce::none
               : *reduce == "max" ? ScoreReduce::max
                                  : ScoreReduce::sum;
    p.score_len = max_len.value_or(all);
    new_scores(p, a, r);
  }
  if (p.B == 0) return r;
  Launch launch(a.q);
  const Tensor workspace = torch::stable::new_empty(
      a.q, std::array<int64_t, 1>{int64_t(paged_decode_workspace(p) + 7) / 8}, ScalarType::Long);
  p.workspace = workspace.mutable_data_ptr();
  paged_decode(p, launch.queue);
  return r;
}

std::tuple<Tensor, Tensor> paged_decode_op(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& table, const Tensor& lens,
    OptTensor q_lens, OptTensor starts, std::optional<double> scale, OptTensor selected,
    OptTensor counts, OptTensor ancestors, OptTensor sink_logit, OptTensor log_gamma,
    std::optional<double> softcap, std::optional<int64_t> window) {
  DecodeResults r = run({{"paged_decode", q, lens, q_lens, starts, selected, counts, ancestors,
                          sink_logit, log_gamma, scale, softcap, window},
                         k,
                         table,
                         v},
                        nullptr, std::nullopt);
  return {r.out, r.lse};
}

std::tuple<Tensor, Tensor, Tensor> paged_decode_scores_op(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& table, const Tensor& lens,
    OptTensor q_lens, OptTensor starts, std::optional<double> scale, OptTensor ancestors,
    OptTensor sink_logit, OptTensor log_gamma, std::optional<double> softcap,
    std::optional<int64_t> window, std::string reduce, std::optional<int64_t> max_len) {
  DecodeResults r = run({{"paged_decode_scores", q, lens, q_lens, starts, std::nullopt,
                          std::nullopt, ancestors, sink_logit, log_gamma, scale, softcap, window},
                         k,
                         table,
                         v},
                        &reduce, max_len);
  return {r.out, r.lse, r.scores};
}

Tensor paged_scores_op(const Tensor& q, const Tensor& k, const Tensor& table, const Tensor& lens,
                       OptTensor q_lens, OptTensor starts, OptTensor ancestors,
                       std::optional<int64_t> window, std::optional<double> scale,
                       std::string reduce, std::optional<int64_t> max_len) {
  return run({{"paged_scores", q, lens, q_lens, starts, std::nullopt, std::nullopt, ancestors,
               std::nullopt, std::nullopt, scale, std::nullopt, window},
              k,
              table,
              std::nullopt},
             &reduce, max_len)
      .scores;
}

}  // namespace

TOKOPS_IMPL(m) {
  m.impl("paged_decode", TORCH_BOX(&paged_decode_op));
  m.impl("paged_decode_scores", TORCH_BOX(&paged_decode_scores_op));
  m.impl("paged_scores", TORCH_BOX(&paged_scores_op));
}
}  // namespace tokops
