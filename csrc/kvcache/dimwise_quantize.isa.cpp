#include "kvcache/dimwise_quantize.h"

#include "common/isa.h"
#include "common/simd.h"

// Elements are compared with cuts between the levels, found once per call. An even grid over the
// cuts tells how many lie below an element's cell; the few within it are searched without branches.
namespace tokops {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kElementsPerTask = 16384;
constexpr int kCells = 1024;

struct Tables {
  float cuts[2 * kMostLevels];  // +inf behind the last
  float values[kMostLevels];
  int32_t below[kCells];  // cuts in lower cells
  int window = 1;         // a power of two above the number of cuts in any cell
  float origin, per;      // cell = (x - origin) * per

  explicit Tables(const DimwiseQuantize& p) {
    const int count = p.count - 1;
    for (int i = 0; i < 2 * kMostLevels; ++i)
      cuts[i] = i < count ? dimwise_cut(p.scale, p.levels[i], p.levels[i + 1]) : INFINITY;
    for (int i = 0; i < p.count; ++i) values[i] = dimwise_value(p.scale, p.levels[i]);
    origin = cuts[0];
    per = count > 1 ? (kCells - 1) / (cuts[count - 1] - origin) : 0.f;
    int at = 0;
    for (int c = 0; c < kCells; ++c) {
      below[c] = at;
      while (at < count && cell(cuts[at]) == c) ++at;
      while (window <= at - below[c]) window *= 2;
    }
  }

  // Never falls as x grows, whatever is rounded: a cut in a lower cell is below x. 0 for NaN.
  int cell(float x) const {
    const float v = (x - origin) * per, low = v > 0 ? v : 0;
    return int(low < kCells - 1 ? low : kCells - 1);
  }
};

template <class T>
void quantize(const DimwiseQuantize& p, const Tables& tables, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.values);
  for (int64_t i = begin; i < end; i += kBlock) {
    const int n = int(end - i < kBlock ? end - i : kBlock);
    float block[kBlock];
    int32_t at[kBlock];
    for (int j = 0; j < kBlock; ++j) block[j] = j < n ? to_float(x[i + j]) : 0.f;
    for (int j = 0; j < kBlock; ++j) at[j] = tables.below[tables.cell(block[j])];
    for (int half = tables.window / 2; half > 0; half /= 2)
      for (int j = 0; j < kBlock; ++j)  // a mask: the outcome is not to be guessed
        at[j] += -int32_t(block[j] > tables.cuts[at[j] + half - 1]) & half;
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
