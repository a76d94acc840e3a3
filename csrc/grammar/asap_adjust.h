// Grammar-aligned decoding: log-probabilities moved by what is known of their futures
// (asap_adjust), and the mass of a node (node_mass).
#pragma once
#include "common/bitmask.h"
#include "common/row_law.h"

namespace tokops {

struct AsapAdjust {
  const void* logits;  // [B, V], the last axis contiguous
  int64_t stride;      // of rows, in elements
  DType dtype;
  int64_t B, V;
  Bitmask mask;        // words are null where all tokens are allowed
  const float* theta;  // [R, V], the last axis contiguous
  int64_t theta_stride, R;
  const int32_t* rows;  // [B] row of theta; outside of it: no node, 0 for all tokens
  float* out;           // [B, V]
};

struct NodeMass {
  const float *logp, *theta;  // [N, V], the last axis contiguous
  int64_t logp_stride, theta_stride;
  int64_t N, V;
  float* out;  // [N]
};

// asap_adjust.isa.cpp on the CPU, .cu on CUDA.
void asap_adjust(const AsapAdjust& p, const Queue& q);
void node_mass(const NodeMass& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

TOKOPS_HD const float* theta_of_row(const AsapAdjust& p, int64_t row) {
  const int64_t node = p.rows[row];
  return node >= 0 && node < p.R ? p.theta + node * p.theta_stride : nullptr;
}

// NaN counts as -inf; and so does what an empty row would make of one.
TOKOPS_HD float sane_sum(float a, float b) {
  const float x = a + b;
  return x != x ? -INFINITY : x;
}

}  // namespace
}  // namespace tokops
