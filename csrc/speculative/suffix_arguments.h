// The tensors of suffix indices, as bindings take them.
#pragma once
#include <string>

#include "common/check.h"
#include "speculative/suffix_index.h"

namespace tokops {

struct SuffixArguments {
  const char* op;
  const Tensor &heads, &text, &states, &edges, &places;

  int64_t batch() const { return heads.size(0); }
  int64_t capacity() const { return text.size(1); }

  // Shapes, dtypes, and the counters that a kernel relies on.
  void check() const {
    tensor("heads", heads, 2);
    tensor("text", text, 2);
    tensor("states", states, 3);
    tensor("edges", edges, 3);
    tensor("places", places, 2);
    check_shape(op, "heads", heads, {batch(), 5}, "[B, 5]");
    check_shape(op, "text", text, {batch(), capacity()}, "[B, C]");
    STD_TORCH_CHECK(capacity() >= 1 && capacity() <= 1 << 28, op,
                    ": text must have room for 1..2^28 tokens, got ", capacity());
    check_shape(op, "states", states, {batch(), 2 * capacity(), 8}, "[B, 2 C, 8]");
    check_shape(op, "edges", edges, {batch(), capacity(), 4}, "[B, C, 4]");
    int64_t width = 2;
    while (width < 2 * capacity()) width *= 2;
    check_shape(op, "places", places, {batch(), width}, "[B, power of two >= 2 C]");
    for (int64_t b = 0; b < batch(); ++b) head(b);
  }

  SuffixIndex index(int64_t b) const {
    int32_t bits = 0;
    while (int64_t(1) << bits < places.size(1)) ++bits;
    return {row<SuffixHead>(heads, b), row<int32_t>(text, b),   row<SuffixState>(states, b),
            row<SuffixEdge>(edges, b), row<int32_t>(places, b), bits};
  }

 private:
  void tensor(const char* name, const Tensor& t, int64_t dims) const {
    check_tensor(op, name, t, dims, {ScalarType::Int}, heads);
    STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
  }

  void head(int64_t b) const {
    const SuffixHead& h = *index(b).head;
    const auto within = [](int32_t x, int64_t most) { return x >= 0 && x <= most; };
    STD_TORCH_CHECK(within(h.tokens, capacity()) && within(h.edges, capacity()) &&
                        within(h.states, 2 * capacity() - 1) && within(h.whole, h.states) &&
                        within(h.recent, h.states),
                    op, ": heads must be as suffix_extend left them, got ",
                    list_of(std::vector<int32_t>{h.tokens, h.states, h.edges, h.whole, h.recent}),
                    " for sequence ", b);
  }

  // Only suffix_extend writes, and its schema says so.
  template <class T>
  static T* row(const Tensor& t, int64_t b) {
    int32_t* data = static_cast<int32_t*>(const_cast<void*>(t.const_data_ptr()));
    return reinterpret_cast<T*>(data + b * (t.numel() / t.size(0)));
  }
};

}  // namespace tokops
