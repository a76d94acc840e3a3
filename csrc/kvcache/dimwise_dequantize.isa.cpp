#include "kvcache/dimwise_dequantize.h"

#include "common/isa.h"

namespace tokops {
namespace {

constexpr int64_t kElementsPerTask = 32768;

void dimwise_dequantize_copy(const DimwiseDequantize& p, const Queue& q) {
  float table[kMostLevels];
  for (int i = 0; i < p.count; ++i) table[i] = dimwise_value(p.scale, p.levels[i]);
  q.parallel(p.n, kElementsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.values[i] = table[p.codes[i]];
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(dimwise_dequantize, dimwise_dequantize_copy, DimwiseDequantize)
