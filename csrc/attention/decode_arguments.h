// The arguments that paged_decode and packed_decode share, and their checks. For bindings.
#pragma once
#include <cmath>
#include <string>

#include "attention/paged_decode.h"
#include "attention/pages.h"
#include "common/check.h"
#include "common/op.h"

namespace tokops {

using OptTensor = std::optional<Tensor>;

// Everything but the pools; what an op lacks stays empty.
struct DecodeArguments {
  const char* op;
  Tensor q, lens;
  OptTensor q_lens, starts, selected, counts, ancestors, sink_logit, log_gamma;
  std::optional<double> scale, softcap;
  std::optional<int64_t> window;
};

inline void check_vector(const OptTensor& t, ScalarType dtype, int64_t n, const Tensor& like,
                         const char* op, const char* name, const char* words) {
  if (!t) return;
  check_dtype(*t, dtype, op, name);
  check_device(*t, like, op, name);
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == n, op, ": ", name, " must be ", words, " = [", n,
                  "], got ", shape_words(*t));
}

// Heads: KV heads of the pools.
inline void check_queries(const DecodeArguments& a, int64_t heads) {
  const Tensor& q = a.q;
  const char* op = a.op;
  STD_TORCH_CHECK(q.dim() == 4, op, ": q must have 4 dimensions, got ", q.dim());
  STD_TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= 256, op, ": head dimension must be 1..256, got ",
                  q.size(3));
  STD_TORCH_CHECK(q.size(1) >= 1 && q.size(1) <= 256, op,
                  ": q must have 1..256 rows per sequence, got ", q.size(1));
  STD_TORCH_CHECK(
      heads > 0 && q.size(2) % heads == 0 && q.size(2) / heads >= 1 && q.size(2) / heads <= 32, op,
      ": query heads must be 1..32 times the KV heads, got ", q.size(2), " and ", heads);
}

inline void check_extras(const DecodeArguments& a, int64_t heads) {
  const Tensor& q = a.q;
  const char* op = a.op;
  const int64_t b = q.size(0), t = q.size(1), hq = q.size(2);
  check_vector(a.q_lens, ScalarType::Int, b, q, op, "q_lens", "[B]");
  check_vector(a.starts, ScalarType::Int, b, q, op, "starts", "[B]");
  check_vector(a.sink_logit, ScalarType::Float, hq, q, op, "sink_logit", "[Hq]");
  check_vector(a.log_gamma, ScalarType::Float, hq, q, op, "log_gamma", "[Hq]");
  STD_TORCH_CHECK(!a.counts || a.selected, op, ": counts needs selected");
  if (a.selected) {
    const Tensor& s = *a.selected;
    check_dtype(s, ScalarType::Int, op, "selected");
    check_device(s, q, op, "selected");
    STD_TORCH_CHECK(s.dim() == 4 && s.size(0) == b && (s.size(1) == 1 || s.size(1) == t) &&
                        (s.size(2) == 1 || s.size(2) == heads || s.size(2) == hq),
                    op, ": selected must be [B, 1 or T, 1 or Hkv or Hq, k] with B ", b, ", T ", t,
                    ", Hkv ", heads, ", Hq ", hq, ", got ", shape_words(s));
    if (a.counts) {
      check_dtype(*a.counts, ScalarType::Int, op, "counts");
      check_device(*a.counts, q, op, "counts");
      STD_TORCH_CHECK(a.counts->dim() == 3 && a.counts->size(0) == b &&
                          a.counts->size(1) == s.size(1) && a.counts->size(2) == s.size(2),
                      op, ": counts must be [B, S, Hs] like selected, got ",
                      shape_words(*a.counts));
    }
  }
  if (a.ancestors) {
    const Tensor& x = *a.ancestors;
    check_dtype(x, ScalarType::Long, op, "ancestors");
    check_device(x, q, op, "ancestors");
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == b && x.size(1) == t &&
                        x.size(2) >= (t + 63) / 64 && x.size(2) <= 4,
                    op, ": ancestors must be [B, T, W] with B ", b, ", T ", t, ", W ",
                    (t + 63) / 64, "..4, got ", shape_words(x));
  }
  check_softcap(op, a.softcap);
  STD_TORCH_CHECK(!a.window || *a.window > 0, op, ": window must be > 0, got ",
                  a.window.value_or(0));
}

// The lists of the selection: ascending positions below the length, then -1.
inline void check_selection(const char* op, const PagedDecode& p) {
  const int64_t lists = int64_t(p.sel_rows) * p.sel_heads;
  for (int64_t i = 0; i < p.B * lists; ++i) {
    const int b = i / lists, h = i % p.sel_heads;
    const int32_t* list = p.selected + i * p.sel_k;
    int64_t n = 0;
    if (p.counts)
      n = p.counts[i];
    else
      while (n < p.sel_k && list[n] >= 0) ++n;
    STD_TORCH_CHECK(n >= 0 && n <= p.sel_k, op, ": counts must be 0..", p.sel_k, ", got ", n);
    int32_t length = p.seq_lens[b * p.lens_b];
    if (p.lens_h)
      for (int k = 0; k < p.Hkv; ++k) {
        const int32_t own = p.seq_lens[b * p.lens_b + k];
        const bool mine = p.sel_heads == 1 || h / (p.sel_heads / p.Hkv) == k;
        if (p.sel_heads == 1 ? (k == 0 || own < length) : mine) length = own;
      }
    bool rising = true;
    for (int64_t j = 1; j < n; ++j) rising &= list[j] > list[j - 1];
    STD_TORCH_CHECK(rising, op, ": selected positions must be strictly ascending");
    STD_TORCH_CHECK(n == 0 || (list[0] >= 0 && list[n - 1] < length), op,
                    ": selected positions must be 0..seq_lens-1");
  }
}

// Makes the small operands contiguous, which must then outlive p, and notes everything but the
// pools.
inline void fill_arguments(PagedDecode& p, DecodeArguments& a, int64_t heads) {
  if (a.q.stride(3) != 1) a.q = torch::stable::contiguous(a.q);
  a.lens = torch::stable::contiguous(a.lens);
  for (OptTensor* t :
       {&a.q_lens, &a.starts, &a.selected, &a.counts, &a.ancestors, &a.sink_logit, &a.log_gamma})
    *t = contiguous_or_none(*t);
  p.B = a.q.size(0), p.T = a.q.size(1), p.Hq = a.q.size(2), p.D = a.q.size(3), p.Hkv = heads;
  p.q = a.q.const_data_ptr();
  p.q_b = a.q.stride(0), p.q_t = a.q.stride(1), p.q_h = a.q.stride(2);
  p.seq_lens = data_or_null<int32_t>(a.lens);
  p.lens_b = a.lens.stride(0), p.lens_h = a.lens.dim() == 2 ? 1 : 0;
  p.q_lens = data_or_null<int32_t>(a.q_lens);
  p.starts = data_or_null<int32_t>(a.starts);
  p.selected = data_or_null<int32_t>(a.selected);
  p.counts = data_or_null<int32_t>(a.counts);
  static const int32_t nothing = -1;  // an empty tensor has no address, and null means dense
  if (a.selected && !p.selected) p.selected = &nothing;
  if (a.selected)
    p.sel_rows = a.selected->size(1), p.sel_heads = a.selected->size(2),
    p.sel_k = a.selected->size(3);
  p.ancestors = data_or_null<uint64_t>(a.ancestors);
  if (a.ancestors) p.words = a.ancestors->size(2);
  p.sink_logit = data_or_null<float>(a.sink_logit);
  p.log_gamma = data_or_null<float>(a.log_gamma);
  p.scale = a.scale ? float(*a.scale) : 1 / std::sqrt(float(p.D));
  p.softcap = float(a.softcap.value_or(0));
  const int64_t window = a.window.value_or(0);
  p.window = window > INT32_MAX ? 0 : int32_t(window);
  p.dtype = dtype_of(a.q, a.op, "q");
}

// out, lse and scores; what is not asked for is a copy of q's handle.
struct DecodeResults {
  Tensor out, lse, scores;
};

inline DecodeResults new_results(PagedDecode& p, const DecodeArguments& a, bool values) {
  DecodeResults r{a.q, a.q, a.q};
  if (!values) return r;
  r.out = torch::stable::new_empty(a.q, std::array<int64_t, 4>{p.B, p.T, p.Hq, p.D});
  r.lse = torch::stable::new_empty(a.q, std::array<int64_t, 3>{p.B, p.T, p.Hq}, ScalarType::Float);
  p.out = r.out.mutable_data_ptr();
  p.lse = r.lse.mutable_data_ptr<float>();
  return r;
}

inline void new_scores(PagedDecode& p, const DecodeArguments& a, DecodeResults& r) {
  const int64_t heads = p.reduce == ScoreReduce::none ? p.Hq : p.Hkv;
  r.scores = torch::stable::new_empty(a.q, std::array<int64_t, 4>{p.B, p.T, heads, p.score_len},
                                      ScalarType::Float);
  p.scores = r.scores.mutable_data_ptr<float>();
}

}  // namespace tokops
