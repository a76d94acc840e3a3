#include "grammar/compose_filters.h"

#include <cstring>

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kWordsPerTask = 2048, kTasksPerThread = 8;

void compose_filters_copy(const ComposeFilters& p, const Queue& q) {
  const int64_t parts = (p.W + kWordsPerTask - 1) / kWordsPerTask;
  q.parallel(p.B * parts, kTasksPerThread, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t row = t / parts, begin = t % parts * kWordsPerTask;
      const int64_t n = p.W - begin < kWordsPerTask ? p.W - begin : kWordsPerTask;
      int32_t* out = p.out + row * p.W + begin;
      std::memmove(out, p.masks[0] + row * p.strides[0] + begin, size_t(n) * sizeof *out);
      for (int f = 1; f < p.count; ++f) {
        const int32_t* other = p.masks[f] + row * p.strides[f] + begin;
        for (int64_t i = 0; i < n; ++i) out[i] &= other[i];
      }
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(compose_filters, compose_filters_copy, ComposeFilters)
