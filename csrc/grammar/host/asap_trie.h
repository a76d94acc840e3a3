// What ASAp and CARS have learned of one prompt, constraint and model: a trie of the contexts that
// were visited (Park et al., "Grammar-Aligned Decoding", 2024).
//
// `theta` of a token, a log-probability, is an upper bound of the mass of what satisfies the
// constraint behind it. It is 0 until something below was learned, so that a node holds tokens one
// by one only where they are likely or were drawn; all other legal ones are in `tail`, the log of
// their summed probability.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tokops::grammar {

class AsapTrie {
 public:
  struct Entry {
    int32_t token, child;  // child: node, -1 if the context behind the token was never visited
    double lp, theta;      // log-probability given the context; bound, at most 0
  };
  struct Node {
    int32_t parent, token, depth;
    int32_t round;       // in which it was made
    int32_t masked;      // whether it was made under a mask
    int64_t tail_count;  // tokens in the tail
    double tail;         // log of their summed probability
    double top, spread;  // logit - top - spread is a log-probability; kept apart, for large logits
    double mass;         // bound of the context itself
    std::vector<Entry> entries;  // by token
  };

  // keep_all: legal tokens up to which all of them become entries; least: probability from which
  // they do in any case. Beyond max_bytes nothing new is recorded. Throws std::invalid_argument.
  explicit AsapTrie(int32_t vocabulary, int32_t keep_all = 1024, double least = 1e-4,
                    int64_t max_bytes = int64_t(1) << 30);

  // The node of a context, -1 if it was never visited. The context without tokens is node 0, once
  // visited.
  int32_t find(const int64_t* tokens, size_t count) const;
  int32_t child(int32_t node, int32_t token) const;

  // Come to the context behind `token` of node `parent` (-1: to the context without tokens): record
  // its law if it is new, and change the logits [vocabulary] in place: -inf where the mask of
  // `words` words (nullptr: all are legal) has no bit, theta added elsewhere. `logit` is the
  // token's in the parent's law, NaN where that is not known. `fresh_too`: also change those of a
  // context that was recorded since the last merge. Returns the node, -1 where nothing could be
  // recorded; logits are then masked alone if fresh_too is set.
  int32_t visit(int32_t parent, int32_t token, float logit, float* logits, const int32_t* mask,
                size_t words, bool fresh_too);

  // A token that turned out not to be legal; `logit` as above. Nothing happens where it is masked
  // or unknown.
  void reject(int32_t node, int32_t token, float logit);
  // A sequence ended at a node, or came no further: what was learned goes up to the root.
  void end(int32_t node);

  // Until merge(), bounds stay as they are: sequences that run at the same time see one law.
  void freeze() { frozen_ = true; }
  void merge();
  bool frozen() const { return frozen_; }

  const Node& node(int32_t at) const;
  int32_t vocabulary() const { return vocabulary_; }
  size_t size() const { return nodes_.size(); }
  int64_t memory() const { return bytes_; }  // of nodes and entries in use

  // Everything, bit by bit. load throws std::invalid_argument where the bytes are not what save
  // gave.
  std::string save() const;
  static AsapTrie load(std::string_view);

 private:
  Node& at(int32_t node);
  const Entry* entry(const Node&, int32_t token) const;
  Entry* explicit_entry(Node&, int32_t token, float logit);
  void record(Node&, const float* logits, const int32_t* mask, size_t words) const;
  void check() const;

  int32_t vocabulary_, keep_all_;
  double least_;
  int64_t max_bytes_, bytes_ = sizeof(AsapTrie);
  int32_t round_ = 0;
  bool frozen_ = false;
  std::vector<Node> nodes_;
  struct Rejected {
    int32_t node, token;
    float logit;
  };
  std::vector<Rejected> rejected_;  // waiting for merge, as are
  std::vector<int32_t> ended_;
};

}  // namespace tokops::grammar
