#include "asap_trie.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

#include "asap_row.h"

namespace tokops::grammar {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();
constexpr double kMostLogit = std::numeric_limits<float>::max();
constexpr char kMagic[8] = {'t', 'o', 'k', 'A', 'S', 'A', 'p', '1'};

void refuse_unless(bool ok, const char* why) {
  if (!ok) throw std::invalid_argument(std::string("AsapTrie: ") + why);
}

int64_t bytes_of(const AsapTrie::Node& node) {
  return int64_t(sizeof node + node.entries.size() * sizeof(AsapTrie::Entry));
}

double log_prob(const AsapTrie::Node& node, float logit) {
  return std::min(std::min(double(logit), kMostLogit) - node.top - node.spread, 0.0);
}

// log of the summed probability of what is legal behind a node, by its bounds.
double mass_of(const AsapTrie::Node& node) {
  double top = node.tail;
  for (const auto& e : node.entries) top = std::max(top, e.lp + e.theta);
  if (top == kNone) return kNone;
  double sum = std::exp(node.tail - top);
  for (const auto& e : node.entries) sum += std::exp(e.lp + e.theta - top);
  return std::min(top + std::log(sum), 0.0);
}

}  // namespace

AsapTrie::AsapTrie(int32_t vocabulary, int32_t keep_all, double least, int64_t max_bytes)
    : vocabulary_(vocabulary), keep_all_(keep_all), least_(least), max_bytes_(max_bytes) {
  refuse_unless(vocabulary >= 1, "the vocabulary must be at least 1 token");
  refuse_unless(keep_all >= 0, "keep_all must be at least 0");
  refuse_unless(least > 0 && least <= 1, "least must be above 0 and at most 1");
  refuse_unless(max_bytes >= 1, "max_bytes must be at least 1");
}

const AsapTrie::Node& AsapTrie::node(int32_t at) const {
  refuse_unless(at >= 0 && size_t(at) < nodes_.size(), "no such node");
  return nodes_[size_t(at)];
}

AsapTrie::Node& AsapTrie::at(int32_t node_) { return const_cast<Node&>(node(node_)); }

const AsapTrie::Entry* AsapTrie::entry(const Node& node, int32_t token) const {
  const auto found = std::lower_bound(node.entries.begin(), node.entries.end(), token,
                                      [](const Entry& e, int32_t t) { return e.token < t; });
  return found != node.entries.end() && found->token == token ? &*found : nullptr;
}

// The entry of a token, taken out of the tail if it is there; nullptr: its probability is not known
// or 0.
AsapTrie::Entry* AsapTrie::explicit_entry(Node& node, int32_t token, float logit) {
  if (const Entry* known = entry(node, token)) return const_cast<Entry*>(known);
  const double lp = log_prob(node, logit);
  if (node.tail_count == 0 || !std::isfinite(lp)) return nullptr;
  if (--node.tail_count == 0) {
    node.tail = kNone;
  } else {
    const double left = -std::expm1(std::min(lp - node.tail, 0.0));  // share of the tail
    node.tail = left > 0 ? node.tail + std::log(left) : kNone;
  }
  bytes_ += sizeof(Entry);
  const auto place = std::lower_bound(node.entries.begin(), node.entries.end(), token,
                                      [](const Entry& e, int32_t t) { return e.token < t; });
  return &*node.entries.insert(place, Entry{token, -1, lp, 0.0});
}

int32_t AsapTrie::child(int32_t node_, int32_t token) const {
  const Entry* found = entry(node(node_), token);
  return found == nullptr ? -1 : found->child;
}

int32_t AsapTrie::find(const int64_t* tokens, size_t count) const {
  int32_t here = nodes_.empty() ? -1 : 0;
  for (size_t i = 0; i < count && here >= 0; ++i)
    here = tokens[i] < 0 || tokens[i] >= vocabulary_ ? -1 : child(here, int32_t(tokens[i]));
  return here;
}

void AsapTrie::record(Node& node, const float* logits, const int32_t* mask, size_t words) const {
  RowSums sums = row_sums(logits, vocabulary_, mask, words);
  node.tail = node.mass = kNone;
  node.top = sums.top;
  node.spread = sums.whole > 0 ? std::log(sums.whole) : 0.0;
  if (sums.legal_count == 0) return;
  std::vector<float> masked;
  // So little that weights beside the largest logit are no measure.
  if (sums.legal < 1e-30 * sums.whole) {
    masked.assign(logits, logits + vocabulary_);
    row_mask(masked.data(), vocabulary_, mask, words);
    logits = masked.data();
    sums = row_sums(logits, vocabulary_, mask, words);
  }
  const double shift = double(sums.top) - node.top - node.spread;
  const bool keep = sums.legal_count <= keep_all_;
  const RowTokens listed = row_tokens(logits, vocabulary_, mask, words, sums,
                                      keep ? 0.0 : std::min(least_ * std::exp(-shift), 1.0));
  node.entries.reserve(listed.tokens.size());
  for (const int32_t token : listed.tokens)
    node.entries.push_back({token, -1, log_prob(node, logits[token]), 0.0});
  node.tail_count = sums.legal_count - int64_t(listed.tokens.size());
  if (node.tail_count > 0) node.tail = std::log(listed.rest) + shift;
  node.mass = std::min(std::log(sums.legal) + shift, 0.0);  // all bounds are 0
}

int32_t AsapTrie::visit(int32_t parent, int32_t token, float logit, float* logits,
                        const int32_t* mask, size_t words, bool fresh_too) {
  refuse_unless(parent >= -1 && parent < int64_t(nodes_.size()), "no such node");
  refuse_unless(parent < 0 || (token >= 0 && token < vocabulary_), "no such token");
  int32_t here = parent < 0 ? (nodes_.empty() ? -1 : 0) : child(parent, token);
  if (here < 0 && bytes_ < max_bytes_) {
    Entry* from = parent < 0 ? nullptr : explicit_entry(at(parent), token, logit);
    if (parent < 0 || from != nullptr) {
      Node made{};
      made.parent = parent;
      made.token = parent < 0 ? -1 : token;
      made.depth = parent < 0 ? 0 : at(parent).depth + 1;
      made.round = round_;
      made.masked = mask != nullptr;
      record(made, logits, mask, words);
      here = int32_t(nodes_.size());
      if (from != nullptr) from->child = here;
      bytes_ += bytes_of(made);
      nodes_.push_back(std::move(made));
    }
  }
  const bool fresh = here < 0 || nodes_[size_t(here)].round == round_;
  if (fresh && !fresh_too) return here;
  row_mask(logits, vocabulary_, mask, words);
  if (here >= 0)
    for (const Entry& e : nodes_[size_t(here)].entries)
      if (e.theta != 0) logits[e.token] += float(e.theta);
  return here;
}

void AsapTrie::reject(int32_t node_, int32_t token, float logit) {
  refuse_unless(token >= 0 && token < vocabulary_, "no such token");
  Node& here = at(node_);
  if (frozen_) {
    rejected_.push_back({node_, token, logit});
    return;
  }
  if (here.masked && entry(here, token) == nullptr) return;
  if (Entry* e = explicit_entry(here, token, logit)) e->theta = kNone;
}

void AsapTrie::end(int32_t node_) {
  node(node_);
  if (frozen_) {
    ended_.push_back(node_);
    return;
  }
  for (int32_t here = node_; here >= 0; here = nodes_[size_t(here)].parent) {
    Node& n = nodes_[size_t(here)];
    n.mass = std::min(n.mass, mass_of(n));
    if (n.parent < 0) continue;
    Entry& e = *const_cast<Entry*>(entry(nodes_[size_t(n.parent)], n.token));
    e.theta = std::min(e.theta, n.mass);
  }
  if (!frozen_) ++round_;
}

void AsapTrie::merge() {
  frozen_ = false;
  for (const Rejected& r : rejected_) reject(r.node, r.token, r.logit);
  rejected_.clear();
  // Every node that something was learned below of, once, the deepest first: a child's number is
  // above its parent's.
  std::vector<int32_t> touched;
  std::vector<uint8_t> seen(nodes_.size(), 0);
  for (const int32_t leaf : ended_)
    for (int32_t here = leaf; here >= 0 && !seen[size_t(here)];
         here = nodes_[size_t(here)].parent) {
      seen[size_t(here)] = 1;
      touched.push_back(here);
    }
  std::sort(touched.begin(), touched.end(), std::greater<>());
  for (const int32_t here : touched) {
    Node& n = nodes_[size_t(here)];
    n.mass = std::min(n.mass, mass_of(n));
    if (n.parent < 0) continue;
    Entry& e = *const_cast<Entry*>(entry(nodes_[size_t(n.parent)], n.token));
    e.theta = std::min(e.theta, n.mass);
  }
  ended_.clear();
  ++round_;
}

// ---- Bytes.

namespace {

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

struct Reader {
  std::string_view left;
  template <class T>
  T get() {
    refuse_unless(left.size() >= sizeof(T), "the bytes end early");
    T value;
    std::memcpy(&value, left.data(), sizeof value);
    left.remove_prefix(sizeof value);
    return value;
  }
};

}  // namespace

std::string AsapTrie::save() const {
  refuse_unless(!frozen_, "merge() before save()");
  std::string out(kMagic, sizeof kMagic);
  put(out, vocabulary_);
  put(out, keep_all_);
  put(out, least_);
  put(out, max_bytes_);
  put(out, round_);
  put(out, int64_t(nodes_.size()));
  for (const Node& n : nodes_) {
    put(out, n.parent);
    put(out, n.token);
    put(out, n.round);
    put(out, n.masked);
    put(out, n.tail_count);
    put(out, n.tail);
    put(out, n.top);
    put(out, n.spread);
    put(out, n.mass);
    put(out, int64_t(n.entries.size()));
    for (const Entry& e : n.entries) {
      put(out, e.token);
      put(out, e.child);
      put(out, e.lp);
      put(out, e.theta);
    }
  }
  return out;
}

AsapTrie AsapTrie::load(std::string_view bytes) {
  Reader in{bytes};
  refuse_unless(
      bytes.size() >= sizeof kMagic && std::memcmp(bytes.data(), kMagic, sizeof kMagic) == 0,
      "these bytes are not a saved trie");
  in.left.remove_prefix(sizeof kMagic);
  const auto vocabulary = in.get<int32_t>(), keep_all = in.get<int32_t>();
  const auto least = in.get<double>();
  const auto max_bytes = in.get<int64_t>();
  const auto round = in.get<int32_t>();
  AsapTrie trie(vocabulary, keep_all, least, max_bytes);
  trie.round_ = round;
  const auto count = in.get<int64_t>();
  refuse_unless(count >= 0 && count <= int64_t(bytes.size()), "number of nodes out of range");
  for (int64_t i = 0; i < count; ++i) {
    Node n{};
    n.parent = in.get<int32_t>();
    n.token = in.get<int32_t>();
    n.round = in.get<int32_t>();
    n.masked = in.get<int32_t>();
    n.tail_count = in.get<int64_t>();
    n.tail = in.get<double>();
    n.top = in.get<double>();
    n.spread = in.get<double>();
    n.mass = in.get<double>();
    const auto entries = in.get<int64_t>();
    refuse_unless(entries >= 0 && entries <= vocabulary, "number of tokens out of range");
    for (int64_t j = 0; j < entries; ++j) {
      Entry e{};
      e.token = in.get<int32_t>();
      e.child = in.get<int32_t>();
      e.lp = in.get<double>();
      e.theta = in.get<double>();
      n.entries.push_back(e);
    }
    trie.bytes_ += bytes_of(n);
    trie.nodes_.push_back(std::move(n));
  }
  refuse_unless(in.left.empty(), "bytes behind the end");
  trie.check();
  return trie;
}

// What was loaded is a trie: children behind their parents, each hanging where it says, numbers in
// range.
void AsapTrie::check() const {
  auto& nodes = const_cast<std::vector<Node>&>(nodes_);
  for (size_t i = 0; i < nodes.size(); ++i) {
    Node& n = nodes[i];
    refuse_unless(i == 0 ? n.parent == -1 && n.token == -1 : n.parent >= 0 && size_t(n.parent) < i,
                  "a node's parent is out of range");
    refuse_unless(i == 0 || child(n.parent, n.token) == int32_t(i),
                  "a node does not hang where it says");
    refuse_unless(n.tail_count >= 0 && n.tail <= 1e-6 && n.mass <= 0 && !std::isnan(n.top) &&
                      !std::isnan(n.spread) && n.round <= round_,
                  "a node's numbers are out of range");
    n.depth = i == 0 ? 0 : nodes[size_t(n.parent)].depth + 1;
    int32_t last = -1;
    for (const Entry& e : n.entries) {
      refuse_unless(e.token > last && e.token < vocabulary_, "tokens do not ascend");
      refuse_unless(e.lp <= 0 && e.theta <= 0, "a probability is above 1");
      refuse_unless(e.child >= -1 && e.child < int64_t(nodes.size()), "a child is out of range");
      refuse_unless(e.child < 0 || (nodes[size_t(e.child)].parent == int32_t(i) &&
                                    nodes[size_t(e.child)].token == e.token),
                    "a child hangs elsewhere");
      last = e.token;
    }
  }
}

}  // namespace tokops::grammar
