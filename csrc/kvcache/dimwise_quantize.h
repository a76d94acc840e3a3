// The nearest of a few levels for every element.
#pragma once
#include "kvcache/dimwise.h"

namespace tokops {

struct DimwiseQuantize {
  const void* x;        // [n] dense
  const float* levels;  // [count] strictly ascending
  uint8_t* codes;       // [n]
  void* values;         // [n] in x's dtype
  int64_t n;
  int32_t count;
  DimwiseScale scale;
  DType dtype;
};

void dimwise_quantize(const DimwiseQuantize& p,
                      const Queue& q);  // dimwise_quantize.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
