// Bitmasks combined: what every one of them allows.
#pragma once
#include "common/bitmask.h"

namespace tokops {

constexpr int kMostFilters = 64;  // of one launch

struct ComposeFilters {
  const int32_t* masks[kMostFilters];  // [B or 1, W] each, the last axis contiguous
  int64_t strides[kMostFilters];       // of rows, in words; 0 where one row serves all
  int32_t count;                       // of masks, at least 1
  int64_t B, W;
  int32_t* out;  // [B, W]; may be one of the masks
};

// compose_filters.isa.cpp on the CPU, .cu on CUDA.
void compose_filters(const ComposeFilters& p, const Queue& q);

}  // namespace tokops
