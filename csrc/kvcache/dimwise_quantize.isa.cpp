#include "kvcache/dimwise_quantize.h"

#include "common/isa.h"
#include "common/simd.h"

// Elements are compared with cuts between the levels, found once per call: a binary search of fixed
// depth without branches, over a block of elements at a time so that the steps of many overlap.
namespace tokops {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kElementsPerTask = 16384;

struct Tables {
  float cuts[kMostLevels];  // filled up with +inf to a power of two
  float values[kMostLevels];
  int depth;  // the power of two

  explicit Tables(const DimwiseQuantize& p) : depth(2) {
    while (depth < p.count) depth *= 2;
    for (int i = 0; i < depth; ++i)
      cuts[i] = i + 1 < p.count ? dimwise_cut(p.scale, p.levels[i], p.levels[i + 1]) : INFINITY;
    for (int i = 0; i < p.count; ++i) values[i] = dimwise_value(p.scale, p.levels[i]);
  }
};

template <class T>
void quantize(const DimwiseQuantize& p, const Tables& tables, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.values);
  for (int64_t i = begin; i < end; i += kBlock) {
    const int n = int(end - i < kBlock ? end - i : kBlock);
    float block[kBlock];
    int32_t at[kBlock] = {};
    for (int j = 0; j < kBlock; ++j) block[j] = j < n ? to_float(x[i + j]) : 0.f;
    for (int half = tables.depth / 2; half > 0; half /= 2)
      for (int j = 0; j < kBlock; ++j) at[j] += block[j] > tables.cuts[at[j] + half - 1] ? half : 0;
    for (int j = 0; j < n; ++j) {
      p.codes[i + j] = uint8_t(at[j]);
      from_float(tables.values[at[j]], out + i + j);
    }
  }
}

void dimwise_quantize_copy(const DimwiseQuantize& p, const Queue& q) {
  const Tables tables(p);
  q.parallel(p.n, kElementsPerTask, [&](int64_t begin, int64_t end) {
    switch (p.dtype) {
      case DType::f32:
        return quantize<float>(p, tables, begin, end);
      case DType::bf16:
        return quantize<bf16>(p, tables, begin, end);
      case DType::f16:
        return quantize<f16>(p, tables, begin, end);
    }
  });
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(dimwise_quantize, dimwise_quantize_copy, DimwiseQuantize)
