// Token trees out of suffix indices. A structure of the host: on other devices the reference runs.
#include "common/op.h"

#if !TOKOPS_BACKEND_IS_CUDA
#include <tuple>
#include <vector>

#include "speculative/suffix_arguments.h"

namespace tokops {
namespace {

constexpr const char* kOp = "suffix_draft";

// A match of m tokens that something followed n times, d different tokens among them, leaves
// kDoubt d of n m^2 + kDoubt d to shorter matches. Of 1..16, on prose, code and copies with edits,
// 16 accepts the most and its weights do not claim more than comes true.
constexpr int64_t kDoubt = 16;

struct Limits {
  int32_t nodes, depth, min_match, max_match, branch;
};

// A node of the tree, or one that might become one.
struct Node {
  double weight;          // estimated probability of the path to it
  int32_t last;           // tokens up to the end of the last occurrence that speaks for it
  int32_t token, parent;  // the parent's index in the tree
  int32_t state, length;  // the longest match that ends in it
  int32_t depth;

  bool before(const Node& x) const {
    if (weight != x.weight) return weight > x.weight;
    return last != x.last ? last > x.last : parent < x.parent;  // `last` tells the token
  }
};

// The best nodes so far, best first, no more than there is room for.
struct Best {
  Node* nodes;
  int32_t size, room;

  bool refuses(double weight) const {
    return size == room && (room == 0 || weight < nodes[size - 1].weight);
  }
  void insert(const Node& x) {
    if (size == room && (room == 0 || !x.before(nodes[size - 1]))) return;
    int32_t i = size == room ? size - 1 : size++;
    for (; i > 0 && x.before(nodes[i - 1]); --i) nodes[i] = nodes[i - 1];
    nodes[i] = x;
  }
};

struct Match {
  int32_t state, length;
};

// The longest suffix of the text that is at most `longest` long.
Match suffix_match(const SuffixIndex& x, int32_t longest) {
  int32_t state = x.head->recent;
  const int32_t length = x.recent_length();
  if (length <= longest) return {state, length};
  while (x.states[x.states[state].link].length >= longest) state = x.states[state].link;
  return {state, longest};
}

// Puts into `best` the likeliest of what may follow a node.
void children(const SuffixIndex& x, const Limits& limits, const Node& node, int32_t index,
              const Best& pending, Best* best) {
  const auto refused = [&](double w) { return pending.refuses(w) || best->refuses(w); };
  double weight = node.weight;
  int64_t m = node.length;
  int32_t longer = -1;
  for (int32_t s = node.state; s != 0 && m >= limits.min_match; m = x.states[s].length) {
    if (refused(weight)) return;
    int64_t n = 0, different = 0;
    x.each_edge(s, [&](int32_t token, int32_t target) {
      if (token < 0) return;
      n += x.states[target].count;
      ++different;
    });
    const double all = double(n * m * m + kDoubt * different);
    x.each_edge(s, [&](int32_t token, int32_t target) {
      const SuffixState& t = x.states[target];
      const double w = weight * (double(t.count * m * m) / all);
      if (token < 0 || refused(w) || (longer >= 0 && x.find(longer, token))) return;
      const bool cut = m + 1 > limits.max_match;
      const int32_t state = cut ? x.shortened(target, limits.max_match) : target;
      const int32_t length = cut ? limits.max_match : int32_t(m) + 1;
      best->insert({w, t.last, token, index, state, length, node.depth + 1});
    });
    if (different > 0) weight *= double(kDoubt * different) / all;
    longer = s;
    s = x.states[s].link;
  }
}

// Best first: the likeliest of all children of the nodes so far becomes the next node. Nodes but
// the root go to `tree`; returns how many there are with it.
int32_t grow(const SuffixIndex& x, const Limits& limits, Node* tree, Node* scratch) {
  const Match match = suffix_match(x, limits.max_match);
  Node node{1.0, 0, 0, -1, match.state, match.length, 0};
  Best pending{tree, 0, limits.nodes - 1};
  for (int32_t i = 0;; ++i) {
    if (node.depth < limits.depth) {
      Best best{scratch, 0, limits.branch < pending.room ? limits.branch : pending.room};
      children(x, limits, node, i, pending, &best);
      for (int32_t j = 0; j < best.size; ++j) pending.insert(best.nodes[j]);
    }
    if (pending.size == 0) return i + 1;
    node = *pending.nodes++;  // stays in the tree: what is pending begins behind it
    --pending.size;
    --pending.room;
  }
}

// What stands behind the first occurrence of the longest match.
int32_t copy(const SuffixIndex& x, const Limits& limits, Node* tree) {
  Match match = suffix_match(x, limits.max_match);
  while (match.state != 0 && x.states[match.state].count < 2) {
    match.state = x.states[match.state].link;
    match.length = x.states[match.state].length;
  }
  if (match.state == 0 || match.length < limits.min_match) return 1;
  const int32_t begin = x.states[match.state].first, there = x.head->tokens - begin;
  int32_t i = 0;
  for (; i < there && i < limits.depth && i < limits.nodes - 1 && x.text[begin + i] >= 0; ++i)
    tree[i] = {1.0, 0, x.text[begin + i], i, 0, 0, i + 1};
  return i + 1;
}

struct Trees {
  int32_t *tokens, *parents;  // [B, nodes]
  float* weights;
  int32_t* sizes;  // [B]
};

void draft(const SuffixIndex& x, const Limits& limits, Node* tree, Node* scratch, int64_t b,
           const Trees& out) {
  int32_t size = 0;
  const int32_t root = x.head->tokens > 0 ? x.text[x.head->tokens - 1] : -1;
  if (root >= 0) size = limits.branch == 1 ? copy(x, limits, tree) : grow(x, limits, tree, scratch);
  for (int32_t i = 0; i < limits.nodes; ++i) {
    const int64_t at = b * limits.nodes + i;
    const bool there = i < size, below = there && i > 0;
    out.tokens[at] = below ? tree[i - 1].token : there ? root : 0;
    out.parents[at] = below ? tree[i - 1].parent : -1;
    out.weights[at] = below ? float(tree[i - 1].weight) : there ? 1.f : 0.f;
  }
  out.sizes[b] = size;
}

Limits limits_of(int64_t nodes, int64_t depth, int64_t min_match, int64_t max_match,
                 int64_t branch) {
  const auto within = [](const char* name, int64_t x, int64_t least, int64_t most) {
    STD_TORCH_CHECK(x >= least && x <= most, kOp, ": ", name, " must be ", least, "..", most,
                    ", got ", x);
    return int32_t(x);
  };
  const int32_t longest = within("max_match", max_match, 1, kLongestCounted - 1);
  return {within("nodes", nodes, 1, 1024), within("depth", depth, 0, 1024),
          within("min_match", min_match, 1, longest), longest, within("branch", branch, 1, 1024)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> suffix_draft_op(const Tensor& heads, const Tensor& text,
                                                           const Tensor& states,
                                                           const Tensor& edges,
                                                           const Tensor& places, int64_t nodes,
                                                           int64_t depth, int64_t min_match,
                                                           int64_t max_match, int64_t branch) {
  const SuffixArguments indices{kOp, heads, text, states, edges, places};
  indices.check();
  const Limits limits = limits_of(nodes, depth, min_match, max_match, branch);
  const std::vector<int64_t> rows = {indices.batch()}, shape = {indices.batch(), nodes};
  Tensor tokens = torch::stable::new_empty(heads, shape, ScalarType::Int);
  Tensor parents = torch::stable::new_empty(heads, shape, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(heads, shape, ScalarType::Float);
  Tensor sizes = torch::stable::new_empty(heads, rows, ScalarType::Int);
  const Trees out{tokens.mutable_data_ptr<int32_t>(), parents.mutable_data_ptr<int32_t>(),
                  weights.mutable_data_ptr<float>(), sizes.mutable_data_ptr<int32_t>()};
  std::vector<Node> room(size_t(2 * tokens.numel()));
  Launch launch(heads);
  launch.queue.parallel(indices.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Node* tree = room.data() + 2 * b * nodes;
      draft(indices.index(b), limits, tree, tree + nodes, b, out);
    }
  });
  return {tokens, parents, sizes, weights};
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("suffix_draft", TORCH_BOX(&suffix_draft_op)); }
}  // namespace tokops
#endif
