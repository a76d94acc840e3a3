// What the simulator knows of the launch at hand; shared by sim.cpp (who runs) and words.cpp (who
// waits).
#pragma once
#include <bit>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "sim.h"

extern "C" unsigned char tokops_shared_begin[], tokops_shared_end[];  // shared.ld

namespace tokops::sim {

struct Random {
  uint64_t state = 1;
  uint32_t operator()() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return uint32_t(z >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t(uint64_t((*this)()) * n >> 32); }
  int bit_of(uint32_t mask) {
    const int turn = (*this)() & 31;
    return (std::countr_zero(std::rotr(mask, turn)) + turn) & 31;
  }
};

struct Copy {
  void* to;
  const void* from;
  int bytes, group;
  bool real;
};

struct Round : Meeting {
  uint32_t mask;
  const char* what;
  int holders;  // lanes that may still read the slots
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int linear;
  const char* what;  // the word it waits in, and where
  Site at;
  Round* round;
  int groups;                // cp.async groups closed so far
  std::vector<Copy> copies;  // not landed yet, oldest first
};

struct Warp {
  uint32_t live, runnable, at_barrier;
  std::vector<Round*> open;
};

struct Barrier {
  int arrived;
  const char* what;
  Site at;
  Votes votes;
  unsigned generation;
  Votes result[2];  // a thread is at most one barrier ahead of the slowest reader
};

struct Block {
  uint3 index;
  int live;
  int warp;        // whose lanes ran last
  uint32_t ready;  // warps with a runnable lane
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<std::unique_ptr<Round>> rounds;
  std::vector<Round*> free_rounds;
  unsigned char* dynamic = nullptr;
  std::vector<unsigned char> statics;  // its static shared memory while another block's is in place
  bool fresh;                          // it has none yet
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void*);
  void* context;
  uint32_t stay;       // of 256: how often the next thread comes from the same warp
  uint32_t residents;  // blocks that take turns
};

inline Random draw;
inline Launch now;
inline Fiber host;
inline Block* block = nullptr;  // both null outside a kernel
inline Thread* self = nullptr;
inline std::string error;
inline long idle_turns = 0;  // since a block ended

std::string place(const Thread& t);
std::string place(const Site& at);
void set_runnable(int warp, uint32_t lanes);
void set_waiting();
// Leaves the running thread for another one, or for the host when this block pauses or ends.
void switch_away(bool done = false);
// The running thread waits in the word `what` until somebody makes it runnable.
void wait(const char* what, const Site& at);

// The running thread has ended: those who wait for it alone need not any longer.
void leave_meetings();

}  // namespace tokops::sim
