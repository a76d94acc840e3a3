// Elements of whole packed pools.
#pragma once
#include "kvcache/codec.h"

namespace tokops {

struct KvDequantize {
  PackedPool pool;
  const void* norm;  // [N, H, P] of norm_dtype, or null
  float* out;        // [N, H, P, D]
  int32_t H;
  DType norm_dtype;  // f16 or f32
};
// kv_dequantize.isa.cpp on the CPU, .cu on CUDA.
void kv_dequantize(const KvDequantize& p, const Queue& q);

}  // namespace tokops
