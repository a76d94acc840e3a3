// Walsh-Hadamard transform of vectors.
#pragma once
#include "common/backend.h"

namespace tokops {

// out = (signs * x) H, or signs * (x H): H is block-diagonal of blocks of n, scaled by n^-1/2.
struct Hadamard {
  const char* x;  // rows [a, b, c] of D contiguous elements; strides in bytes
  char* out;      // the same rows, dense
  int64_t b, c, rows;
  int64_t stride_a, stride_b, stride_c;
  const float* signs;  // [D] or null
  bool inverse;
  int32_t D, n;  // n: a power of two that divides D
  DType dtype;
};
// hadamard.isa.cpp on the CPU, .cu on CUDA.
void hadamard(const Hadamard& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

constexpr int kMaxHadamardDim = 256;

TOKOPS_HD const char* hadamard_row(const Hadamard& p, int64_t row) {
  return p.x + row / p.c / p.b * p.stride_a + row / p.c % p.b * p.stride_b + row % p.c * p.stride_c;
}

}  // namespace
}  // namespace tokops
