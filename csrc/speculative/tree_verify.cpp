#include "speculative/tree_verify.h"

#include <set>
#include <tuple>

#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "tree_verify";
constexpr int64_t kMostDrafts = 64;
constexpr const char* kModes[] = {"greedy", "target_only", "rrs",     "rrs_wo", "greedy_plus_one",
                                  "kseq",   "chain_block", "typical", "lantern"};
constexpr const char* kResiduals[] = {"moved", "plain", "compat"};

template <class Names>
int index_of(const std::string& word, const Names& names, const char* what) {
  std::string known;
  int i = 0;
  for (const char* name : names) {
    if (word == name) return i;
    known += (i++ ? ", " : "") + std::string(name);
  }
  STD_TORCH_CHECK(false, kOp, ": ", what, " must be one of ", known, ", got ", word);
  return -1;
}

bool uses_draft(Verify m) {
  return m == Verify::rrs || m == Verify::rrs_wo || m == Verify::greedy_plus_one ||
         m == Verify::kseq || m == Verify::chain_block;
}
bool wants_distinct(Verify m) {
  return m == Verify::target_only || m == Verify::rrs_wo || m == Verify::greedy_plus_one ||
         m == Verify::lantern;
}

// What a tree must be for its mode, on the host.
class TreeCheck {
 public:
  explicit TreeCheck(const TreeVerify& p) : p_(p) {}

  void run() const {
    for (int b = 0; b < p_.B; ++b) {
      const int n = p_.n_nodes ? p_.n_nodes[b] : p_.N;
      STD_TORCH_CHECK(n >= 1 && n <= p_.N, kOp, ": n_nodes must be 1..", p_.N, ", got ", n,
                      " for tree ", b);
      for (int i = 0; i < n; ++i) node(b, i, n);
    }
  }

 private:
  int at(const int32_t* x, int b, int i) const { return x[int64_t(b) * p_.N + i]; }
  int link(const int32_t* x, int b, int i, int n) const {
    const int to = at(x, b, i);
    STD_TORCH_CHECK(to == -1 || (to > i && to < p_.N), kOp, ": link ", to, " of node ", i,
                    " of tree ", b, " does not lead to a later node");
    return to < n ? to : -1;
  }

  void neighbours_of(int64_t code) const {
    if (code < 0 || code >= p_.codes) return;
    for (int64_t i = code * p_.reach; i < (code + 1) * p_.reach; ++i) {
      const int64_t y = int64_t(p_.neighbours[i]) + p_.offset;
      STD_TORCH_CHECK(p_.neighbours[i] >= 0 && p_.neighbours[i] < p_.codes && y < p_.V, kOp,
                      ": neighbours must be codes 0..", p_.codes - 1, ", got ", p_.neighbours[i]);
    }
  }

  void node(int b, int i, int n) const {
    const int x = at(p_.tokens, b, i);
    int depth = 0;
    for (int a = i; a > 0; ++depth) {
      const int up = at(p_.parents, b, a);
      if (up < 0) return;  // padding
      STD_TORCH_CHECK(up < a, kOp, ": parents must stand before their children, node ", a,
                      " of tree ", b, " has parent ", up);
      a = up;
    }
    STD_TORCH_CHECK(i == 0 || (x >= 0 && x < p_.V), kOp, ": tokens must be 0..", p_.V - 1, ", got ",
                    x, " at node ", i, " of tree ", b);
    STD_TORCH_CHECK(depth < p_.columns, kOp, ": node ", i, " of tree ", b, " is deeper than ",
                    p_.columns - 1, ", the tree's max_depth");
    if (i > 0) neighbours_of(int64_t(x) - p_.offset);
    int children = 0;
    std::set<int> seen;
    for (int c = link(p_.first_child, b, i, n); c >= 0; c = link(p_.next_sibling, b, c, n)) {
      ++children;
      STD_TORCH_CHECK(at(p_.parents, b, c) == i, kOp, ": links and parents disagree, node ", c,
                      " of tree ", b, " stands below ", i, " and has parent ",
                      at(p_.parents, b, c));
      const int token = at(p_.tokens, b, c);
      STD_TORCH_CHECK(!wants_distinct(p_.mode) || seen.insert(token).second, kOp, ": mode ",
                      kModes[int(p_.mode)], " needs siblings with distinct tokens, node ", i,
                      " of tree ", b, " has two with token ", token);
      if (!p_.draft) continue;
      const int row = at(p_.draft_rows, b, c);
      STD_TORCH_CHECK(row >= 0 && row < p_.M, kOp, ": draft_rows must be 0..", p_.M - 1, ", got ",
                      row, " at node ", c, " of tree ", b);
      STD_TORCH_CHECK(row == at(p_.draft_rows, b, link(p_.first_child, b, i, n)), kOp,
                      ": draft_rows of siblings must be the same, those of the children of node ",
                      i, " of tree ", b, " are not");
    }
    if (p_.mode == Verify::chain_block)
      STD_TORCH_CHECK(children <= 1, kOp, ": mode chain_block needs chains, node ", i, " of tree ",
                      b, " has ", children, " children");
    if (p_.mode == Verify::kseq)
      STD_TORCH_CHECK(children <= (i ? 1 : kMostDrafts), kOp, ": mode kseq needs ",
                      i ? "chains below the root" : "at most 64 drafts", ", node ", i, " of tree ",
                      b, " has ", children, " children");
  }

  const TreeVerify& p_;
};

void refuse_faults(const Tensor& faults, int64_t requests) {
  const int32_t* x = static_cast<const int32_t*>(faults.const_data_ptr());
  for (int64_t b = 0; b < requests; ++b) {
    const char* words = nullptr;
    switch (Fault(x[2 * b])) {
      case Fault::none:
        break;
      case Fault::empty_target:
        words = "the target's row has no finite logit or no probability";
        break;
      case Fault::target_mass:
        words = "probs must sum to 1 and none be negative";
        break;
      case Fault::draft_mass:
        words = "draft_probs must sum to 1 and none be negative in the row of its children";
        break;
      case Fault::zero_draft:
        words =
            "its token has probability 0 in draft_probs, which is not the law it was drawn from";
        break;
      case Fault::low_rho:
        words = "rho must be at least 1 and such that no residual is negative";
        break;
    }
    STD_TORCH_CHECK(words == nullptr, kOp, ": ", words, " (node ", x[2 * b + 1], " of tree ", b,
                    ")");
  }
}

struct Inputs {
  Tensor tokens, parents, first, next, stream, position;
  std::optional<Tensor> n_nodes, target, draft, rows, rho, neighbours;
};

Tensor ints(const char* name, const Tensor& t, const std::vector<int64_t>& shape, const char* words,
            const Tensor& like, ScalarType dtype = ScalarType::Int) {
  check_tensor(kOp, name, t, int64_t(shape.size()), {dtype}, like);
  check_shape(kOp, name, t, shape, words);
  return contiguous(t);
}

// The last axis contiguous.
Tensor dense_rows(const Tensor& x) {
  return x.stride(2) == 1 || x.size(2) == 1 ? x : contiguous(x);
}

void take_target(Inputs* in, TreeVerify* p, const std::optional<Tensor>& logits,
                 const std::optional<Tensor>& probs) {
  STD_TORCH_CHECK(logits.has_value() != probs.has_value(), kOp,
                  ": one of logits and probs must be given");
  const char* name = logits ? "logits" : "probs";
  const Tensor& t = logits ? *logits : *probs;
  if (logits)
    check_tensor(kOp, name, t, 3, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
                 in->tokens);
  else
    check_tensor(kOp, name, t, 3, {ScalarType::Float}, in->tokens);
  check_shape(kOp, name, t, {p->B, p->N, t.size(2)}, "[B, N, V]");
  STD_TORCH_CHECK(t.size(2) >= 1 && t.size(2) <= kMostVocabulary, kOp,
                  ": the vocabulary must be 1..", kMostVocabulary, " tokens, got ", t.size(2));
  in->target = dense_rows(t);
  p->V = int32_t(t.size(2));
  p->dtype = dtype_of(t, kOp, name);
  (logits ? p->logits : reinterpret_cast<const void*&>(p->probs)) = in->target->const_data_ptr();
  p->target_b = in->target->stride(0);
  p->target_n = in->target->stride(1);
}

void take_draft(Inputs* in, TreeVerify* p, const std::optional<Tensor>& draft,
                const std::optional<Tensor>& rows) {
  const char* mode = kModes[int(p->mode)];
  STD_TORCH_CHECK(draft.has_value() == rows.has_value(), kOp,
                  ": draft_probs and draft_rows go together");
  STD_TORCH_CHECK(draft || !uses_draft(p->mode), kOp, ": mode ", mode,
                  " needs draft_probs and draft_rows");
  if (!draft) return;
  check_tensor(kOp, "draft_probs", *draft, 3, {ScalarType::Float}, in->tokens);
  check_shape(kOp, "draft_probs", *draft, {p->B, draft->size(1), p->V}, "[B, M, V]");
  in->draft = dense_rows(*draft);
  in->rows = ints("draft_rows", *rows, {p->B, p->N}, "[B, N]", in->tokens);
  p->M = int32_t(draft->size(1));
  p->draft = static_cast<const float*>(in->draft->const_data_ptr());
  p->draft_b = in->draft->stride(0);
  p->draft_m = in->draft->stride(1);
  p->draft_rows = static_cast<const int32_t*>(in->rows->const_data_ptr());
}

void take_mode(Inputs* in, TreeVerify* p, const std::optional<Tensor>& rho,
               const std::optional<Tensor>& neighbours, int64_t offset,
               const std::string& residual) {
  if (rho) {
    STD_TORCH_CHECK(p->mode == Verify::kseq, kOp, ": mode ", kModes[int(p->mode)], " takes no rho");
    in->rho = ints("rho", *rho, {p->B, p->N}, "[B, N]", in->tokens, ScalarType::Double);
    p->rho = static_cast<const double*>(in->rho->const_data_ptr());
  }
  STD_TORCH_CHECK(neighbours.has_value() == (p->mode == Verify::lantern), kOp, ": mode ",
                  kModes[int(p->mode)], neighbours ? " takes no" : " needs", " neighbours");
  p->residual = Residual(index_of(residual, kResiduals, "residual"));
  if (!neighbours) return;
  check_tensor(kOp, "neighbours", *neighbours, 2, {ScalarType::Int}, in->tokens);
  in->neighbours = contiguous(*neighbours);
  p->codes = int32_t(neighbours->size(0));
  p->reach = int32_t(neighbours->size(1));
  p->offset = int32_t(offset);
  STD_TORCH_CHECK(offset >= 0 && offset + p->codes <= p->V, kOp, ": token_offset ", offset, " and ",
                  p->codes, " codes leave the vocabulary of ", p->V);
  p->neighbours = static_cast<const int32_t*>(in->neighbours->const_data_ptr());
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Results tree_verify_op(std::string mode, const Tensor& tokens, const Tensor& parents,
                       const Tensor& first_child, const Tensor& next_sibling, int64_t max_depth,
                       const std::optional<Tensor>& logits, const std::optional<Tensor>& probs,
                       const std::optional<Tensor>& draft_probs,
                       const std::optional<Tensor>& draft_rows, int64_t seed, const Tensor& stream,
                       const Tensor& position, const std::optional<Tensor>& n_nodes,
                       bool match_plain, double temperature, int64_t top_k, double top_p,
                       double min_p, double eps, double delta, const std::optional<Tensor>& rho,
                       const std::optional<Tensor>& neighbours, int64_t token_offset,
                       std::string residual) {
  TreeVerify p{};
  p.mode = Verify(index_of(mode, kModes, "mode"));
  Inputs in;
  check_tensor(kOp, "tokens", tokens, 2, {ScalarType::Int}, tokens);
  in.tokens = contiguous(tokens);
  const int64_t b = tokens.size(0), n = tokens.size(1);
  const std::vector<int64_t> nodes{b, n}, requests{b};
  STD_TORCH_CHECK(n >= 1, kOp, ": a tree must have a root");
  STD_TORCH_CHECK(max_depth >= 0 && max_depth < n, kOp, ": max_depth must be 0..", n - 1, ", got ",
                  max_depth);
  p.B = int32_t(b);
  p.N = int32_t(n);
  p.columns = int32_t(max_depth + 1);
  in.parents = ints("parents", parents, nodes, "[B, N]", tokens);
  in.first = ints("first_child", first_child, nodes, "[B, N]", tokens);
  in.next = ints("next_sibling", next_sibling, nodes, "[B, N]", tokens);
  in.stream = ints("stream", stream, requests, "[B]", tokens, ScalarType::Long);
  in.position = ints("position", position, requests, "[B]", tokens, ScalarType::Long);
  if (n_nodes) in.n_nodes = ints("n_nodes", *n_nodes, requests, "[B]", tokens);
  take_target(&in, &p, logits, probs);
  take_draft(&in, &p, draft_probs, draft_rows);
  take_mode(&in, &p, rho, neighbours, token_offset, residual);
  p.tokens = static_cast<const int32_t*>(in.tokens.const_data_ptr());
  p.parents = static_cast<const int32_t*>(in.parents.const_data_ptr());
  p.first_child = static_cast<const int32_t*>(in.first.const_data_ptr());
  p.next_sibling = static_cast<const int32_t*>(in.next.const_data_ptr());
  p.n_nodes = data_or_null<int32_t>(in.n_nodes);
  p.settings = {float(temperature), float(top_p), float(min_p), int32_t(top_k)};
  p.seed = uint64_t(seed);
  p.stream = static_cast<const int64_t*>(in.stream.const_data_ptr());
  p.position = static_cast<const int64_t*>(in.position.const_data_ptr());
  p.match_plain = match_plain;
  p.eps = eps;
  p.delta = delta;
  if (kOnHost) TreeCheck(p).run();

  const auto fresh = [&](std::vector<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(tokens, shape, dtype);
  };
  Tensor accept_len = fresh({b}, ScalarType::Int);
  Tensor accept_node = fresh({b, p.columns}, ScalarType::Int);
  Tensor out_tokens = fresh({b, p.columns}, ScalarType::Int);
  Tensor rows_read = fresh({b}, ScalarType::Int);
  if (b == 0) return {accept_len, accept_node, out_tokens, rows_read};
  int64_t threads = 1;
  if constexpr (kOnHost) threads = torch::stable::get_num_threads();
  p.slots = int32_t(b < threads ? b : threads);
  const bool weighs = kOnHost && logits;
  Tensor faults = torch::stable::new_zeros(tokens, {b, 2}, ScalarType::Int);
  Tensor residuals = fresh({keeps_residual(p.mode) ? b : 0, p.V}, ScalarType::Float);
  Tensor marks =
      torch::stable::new_zeros(tokens, {keeps_marks(p.mode) ? b : 0, p.V}, ScalarType::Byte);
  Tensor score = fresh({p.mode == Verify::typical ? b : 0, n}, ScalarType::Double);
  Tensor space = fresh({weighs ? kRowFloats * p.slots : 0, p.V}, ScalarType::Float);
  p.accept_len = accept_len.mutable_data_ptr<int32_t>();
  p.accept_node = accept_node.mutable_data_ptr<int32_t>();
  p.out_tokens = out_tokens.mutable_data_ptr<int32_t>();
  p.rows_read = rows_read.mutable_data_ptr<int32_t>();
  p.faults = faults.mutable_data_ptr<int32_t>();
  p.left = keeps_residual(p.mode) ? residuals.mutable_data_ptr<float>() : nullptr;
  p.marks = keeps_marks(p.mode) ? marks.mutable_data_ptr<uint8_t>() : nullptr;
  p.score = score.mutable_data_ptr<double>();
  p.workspace = space.mutable_data_ptr<float>();
  Launch launch(tokens);
  tree_verify(p, launch.queue);
  if (kOnHost) refuse_faults(faults, b);
  return {accept_len, accept_node, out_tokens, rows_read};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("tree_verify", TORCH_BOX(&tree_verify_op)); }
}  // namespace tokops
