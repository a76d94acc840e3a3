// The simulator's side of csrc/common/cuda.cuh: with it g++ compiles .cu files into code that runs
// thread by thread.
//
// Every CUDA thread is a fiber that runs until it meets others (barrier, shuffle, vote) or
// finishes; who runs next is drawn from a seed. So a write that no barrier separates from its
// reader is seen too early or too late in some order. Shared memory starts as NaN in every block,
// and cp.async lands at its wait and not before.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>

namespace tokops::sim {

using Site = std::source_location;

// Runs body(context) once per thread of the grid, and returns when all are done. Throws
// std::runtime_error when the kernel misuses a word below, or when its threads wait for each other
// for ever.
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);
template <class F>
void run(dim3 grid, dim3 block, size_t shared_bytes, F&& f) {
  run(
      grid, block, shared_bytes, [](void* c) { (*static_cast<std::remove_reference_t<F>*>(c))(); },
      &f);
}

void* dynamic_shared();
bool is_shared(const void* p, size_t bytes);
int lane();

// Ends the launch: run() throws `message` with the thread's place.
[[noreturn]] void fail(const std::string& message, Site at = Site::current());
// Lets other threads run now, or not: called where other threads or blocks may look in between, as
// at an atomic.
void yield();

// ---- Meeting points. `what` names the word; lanes that wait for each other in different words are
// an error. ----

inline constexpr int kLanes = 32,
                     kSlot = 24;  // bytes a lane brings: the operands of one mma are the most

struct Meeting {
  uint32_t arrived;
  alignas(8) unsigned char slot[kLanes][kSlot];
};
const Meeting& meet(const void* mine, size_t bytes, const char* what, uint32_t mask, Site at);

// What each lane of a meeting brought; a lane that did not come brought bytes of ones.
template <class T>
struct Gathered {
  const Meeting& meeting;
  T operator[](int from) const {
    T value;
    std::memset(static_cast<void*>(&value), 0xff, sizeof value);
    if (from >= 0 && from < kLanes && meeting.arrived >> from & 1) {
      std::memcpy(static_cast<void*>(&value), meeting.slot[from], sizeof value);
    }
    return value;
  }
};

// Waits until all lanes of `mask` that still run have come.
template <class T>
Gathered<T> gather(const T& mine, const char* what, uint32_t mask = 0xffffffffu,
                   Site at = Site::current()) {
  static_assert(sizeof(T) <= kSlot && std::is_trivially_copyable_v<T>);
  return {meet(&mine, sizeof mine, what, mask, at)};
}

// One row of an 8 x 8 tile of 16-bit elements, as ldmatrix reads it.
struct TileRow {
  uint32_t word[4];
  uint16_t half_word(int i) const { return uint16_t(word[i / 2] >> 16 * (i % 2)); }
};
inline Gathered<TileRow> gather_rows(const void* row, Site at = Site::current()) {
  if (uintptr_t(row) % sizeof(TileRow)) fail("ldmatrix: a row that is not aligned to 16 bytes", at);
  if (!is_shared(row, sizeof(TileRow))) fail("ldmatrix: a row outside shared memory", at);
  TileRow mine;
  std::memcpy(&mine, row, sizeof mine);
  return gather(mine, "ldmatrix", 0xffffffffu, at);
}

// The low (i = 0) or high (i = 1) number of a packed pair.
template <class T>
float half_of(uint32_t word, int i) {
  const uint16_t bits = uint16_t(word >> 16 * i);
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(__ushort_as_half(bits));
  } else {
    return __bfloat162float(__ushort_as_bfloat16(bits));
  }
}

struct Votes {
  int count, all, any;
};
Votes block_barrier(const char* what, int predicate, Site at);

// ---- cp.async ----

void async_copy(void* shared, const void* global, int bytes, bool real, Site at = Site::current());
void async_commit();
void async_wait(int groups);  // lands all but the latest `groups` groups of this thread

}  // namespace tokops::sim

// ---- CUDA's own words. ----

// Statics of one object are the block's shared memory: one block runs at a time, and shared.ld says
// where they lie.
#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

#include "intrinsics.h"
