// The values of dimension-wise codes: a table of up to 256.
#pragma once
#include "kvcache/dimwise.h"

namespace tokops {

struct DimwiseDequantize {
  const uint8_t* codes;  // [n] dense
  const float* levels;   // [count]
  float* values;         // [n]
  int64_t n;
  int32_t count;
  DimwiseScale scale;
};

void dimwise_dequantize(const DimwiseDequantize& p,
                        const Queue& q);  // dimwise_dequantize.isa.cpp on the CPU, .cu on CUDA

}  // namespace tokops
