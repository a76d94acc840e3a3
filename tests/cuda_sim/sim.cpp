#include "sim.h"

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" unsigned char tokops_shared_begin[], tokops_shared_end[];  // shared.ld
extern "C" void tokops_sim_seed_device(int seed);                     // runtime.cpp

namespace tokops::sim {
namespace {

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
  std::vector<unsigned char> statics;  // its static shared memory while another block runs
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void*);
  void* context;
  uint32_t stay;       // of 256: how often the next thread comes from the same warp
  uint32_t residents;  // blocks that take turns
};

std::mutex one_launch;
uint64_t seed = 0, launches = 0;
Random draw;
Launch now;
Fiber host;
Block* block = nullptr;  // both null outside a kernel
Thread* self = nullptr;
std::string error;
long idle_turns = 0;

constexpr long kIdleLimit = 20'000'000;

// sim.cpp is built without AddressSanitizer and the red zones around shared variables are copied
// and filled like the rest; a plain loop, because the sanitizer watches memcpy and memset.
void copy_bytes(volatile unsigned char* to, const volatile unsigned char* from, size_t n) {
  for (size_t i = 0; i + 8 <= n; i += 8) {
    *reinterpret_cast<volatile uint64_t*>(to + i) =
        *reinterpret_cast<const volatile uint64_t*>(from + i);
  }
}
size_t static_bytes() { return size_t(tokops_shared_end - tokops_shared_begin); }

std::string place(const Thread& t) {
  const auto three = [](auto v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) +
           ")";
  };
  return "thread " + three(t.index) + " of block " + three(block->index);
}
std::string place(const Site& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

// ---- Who runs next. ----

Thread* pick() {
  if (!block->ready) return nullptr;
  if (!(block->ready >> block->warp & 1) || (draw() & 255) >= now.stay)
    block->warp = draw.bit_of(block->ready);
  return block->threads[32 * block->warp + draw.bit_of(block->warps[block->warp].runnable)].get();
}

void set_runnable(int warp, uint32_t lanes) {
  block->warps[warp].runnable |= lanes;
  if (block->warps[warp].runnable) block->ready |= 1u << warp;
}

void set_waiting() {
  const int warp = self->linear / 32;
  if (!(block->warps[warp].runnable &= ~(1u << self->linear % 32))) block->ready &= ~(1u << warp);
}

std::string describe_deadlock() {
  std::map<std::string, std::pair<int, const Thread*>> where;
  for (const auto& t : block->threads) {
    if (!(block->warps[t->linear / 32].live >> t->linear % 32 & 1)) continue;
    auto& entry = where[std::string(t->what) + " at " + place(t->at)];
    if (!entry.first++) entry.second = t.get();
  }
  std::string text = "deadlock:";
  for (const auto& [what, entry] : where) {
    text += " " + std::to_string(entry.first) + " wait in " + what + " (" + place(*entry.second) +
            " is one);";
  }
  text.back() = '.';
  return text;
}

// Leaves the running thread for another one, or for the host when this block pauses or ends.
void switch_away(bool done = false) {
  Thread* const me = self;
  Thread* next = nullptr;
  const bool pause = now.residents > 1 && block->ready && !(draw() & 255);
  if (!pause) {
    next = pick();
    if (!next && block->live) error = describe_deadlock();
  }
  if (next == me) return;
  self = next;
  if (next) threadIdx = next->index;
  me->fiber.switch_to(next ? next->fiber : host, done);
}

void wait(const char* what, const Site& at) {
  self->what = what;
  self->at = at;
  set_waiting();
  switch_away();
}

// ---- Meetings of lanes and of threads. ----

void release(Thread& t) {
  if (t.round && --t.round->holders == 0) block->free_rounds.push_back(t.round);
  t.round = nullptr;
}

Round* open_round(Warp& warp, uint32_t mask, const char* what) {
  for (Round* r : warp.open)
    if (r->mask == mask) return r;
  if (block->free_rounds.empty()) {
    block->rounds.push_back(std::make_unique<Round>());
    block->free_rounds.push_back(block->rounds.back().get());
  }
  Round* r = block->free_rounds.back();
  block->free_rounds.pop_back();
  r->arrived = 0;
  r->mask = mask;
  r->what = what;
  r->holders = 0;
  warp.open.push_back(r);
  return r;
}

// Wakes the lanes of every meeting whose last lane has come, or has ended.
void close_rounds(int w) {
  Warp& warp = block->warps[w];
  std::erase_if(warp.open, [&](Round* r) {
    if (r->mask & warp.live & ~r->arrived) return false;
    set_runnable(w, r->arrived);
    return true;
  });
}

void close_barrier() {
  Barrier& b = block->barrier;
  if (!b.arrived || b.arrived < block->live) return;
  b.result[b.generation++ & 1] = b.votes;
  b.arrived = 0;
  for (size_t w = 0; w < block->warps.size(); ++w) {
    set_runnable(int(w), block->warps[w].at_barrier);
    block->warps[w].at_barrier = 0;
  }
}

// ---- Threads, blocks, grids. ----

[[noreturn]] void thread_main() {
  self->fiber.arrived();
  now.body(now.context);
  const int w = self->linear / 32;
  release(*self);
  set_waiting();
  block->warps[w].live &= ~(1u << self->linear % 32);
  --block->live;
  close_rounds(w);
  close_barrier();
  switch_away(true);
  std::abort();  // nobody switches to a thread that is done
}

void start_block(Block& b, uint64_t linear) {
  const int n = int(now.block.x * now.block.y * now.block.z);
  b.index = {unsigned(linear % now.grid.x), unsigned(linear / now.grid.x % now.grid.y),
             unsigned(linear / now.grid.x / now.grid.y)};
  while (int(b.threads.size()) < n) b.threads.push_back(std::make_unique<Thread>());
  b.threads.resize(n);
  b.warps.assign((n + 31) / 32, Warp{});
  for (int i = 0; i < n; ++i) {
    Thread& t = *b.threads[i];
    t.index = {i % now.block.x, i / now.block.x % now.block.y, i / now.block.x / now.block.y};
    t.linear = i;
    t.round = nullptr;
    t.groups = 0;
    t.copies.clear();
    t.fiber.start(thread_main);
    b.warps[i / 32].live |= 1u << i % 32;
  }
  b.live = n;
  b.warp = 0;
  b.ready = 0;
  for (size_t w = 0; w < b.warps.size(); ++w) {
    b.warps[w].runnable = b.warps[w].live;
    b.ready |= 1u << w;
  }
  b.barrier = {};
  b.free_rounds.clear();
  for (auto& r : b.rounds) b.free_rounds.push_back(r.get());
  std::fill_n(b.dynamic, now.shared_bytes, 0xff);
  b.statics.assign(static_bytes(), 0xff);
}

// Runs a block until it pauses or ends.
void resume_block(Block& b) {
  block = &b;
  blockIdx = b.index;
  copy_bytes(tokops_shared_begin, b.statics.data(), b.statics.size());
  self = pick();
  threadIdx = self->index;
  host.switch_to(self->fiber);
  copy_bytes(b.statics.data(), tokops_shared_begin, b.statics.size());
  block = nullptr;
  self = nullptr;
}

void check_shape(dim3 grid, dim3 threads, size_t shared_bytes) {
  const uint64_t n = uint64_t(threads.x) * threads.y * threads.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
      !n || n > 1024 || threads.z > 64) {
    throw std::runtime_error("launch: invalid configuration argument");
  }
  if (shared_bytes > 163 * 1024) {
    throw std::runtime_error("launch: more dynamic shared memory than an sm_80 block has (163 KB)");
  }
}

struct Residents {
  std::vector<std::unique_ptr<Block>> blocks;
  explicit Residents(size_t n) {
    static std::vector<std::unique_ptr<Block>> pool;  // keeps the stacks from launch to launch
    while (pool.size() < n) pool.push_back(std::make_unique<Block>());
    for (size_t i = 0; i < n; ++i) {
      blocks.push_back(std::move(pool.back()));
      pool.pop_back();
    }
    back = &pool;
    for (auto& b : blocks) b->dynamic = new (std::align_val_t(128)) unsigned char[now.shared_bytes];
  }
  ~Residents() {
    for (auto& b : blocks) {
      ::operator delete[](b->dynamic, std::align_val_t(128));
      back->push_back(std::move(b));
    }
  }
  std::vector<std::unique_ptr<Block>>* back;
};

void run_blocks(std::vector<uint32_t>& order) {
  Residents residents(std::min<size_t>(now.residents, order.size()));
  std::vector<Block*> active;
  std::vector<Block*> idle;
  for (auto& b : residents.blocks) idle.push_back(b.get());
  while (!order.empty() || !active.empty()) {
    while (!order.empty() && !idle.empty()) {
      start_block(*idle.back(), order.back());
      active.push_back(idle.back());
      idle.pop_back();
      order.pop_back();
    }
    const uint32_t turn = draw.below(uint32_t(active.size()));
    Block* b = active[turn];
    resume_block(*b);
    if (!error.empty()) {
      for (auto& resident : residents.blocks)
        for (auto& t : resident->threads) t->fiber.forget_frames();
      throw std::runtime_error(std::exchange(error, {}));
    }
    if (b->live) continue;
    active.erase(active.begin() + turn);
    idle.push_back(b);
    idle_turns = 0;
  }
}

}  // namespace

void run(dim3 grid, dim3 threads, size_t shared_bytes, void (*body)(void*), void* context) {
  const std::lock_guard lock(one_launch);
  check_shape(grid, threads, shared_bytes);
  draw.state = seed * 0x100000001b3u + ++launches;
  const uint32_t kStay[] = {0, 230, 256};  // all warps alike; in bursts; one warp as far as it gets
  now = {grid, threads, shared_bytes, body, context, kStay[draw.below(3)], 1 + draw.below(3)};
  blockDim = threads;
  gridDim = grid;
  std::vector<uint32_t> order(size_t(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = uint32_t(i);
    std::swap(order[i], order[draw.below(uint32_t(i + 1))]);
  }
  idle_turns = 0;
  // Host statics of a kernel's object, if any, lie among its shared variables.
  std::vector<unsigned char> before(static_bytes());
  copy_bytes(before.data(), tokops_shared_begin, before.size());
  struct Restore {
    std::vector<unsigned char>& before;
    ~Restore() { copy_bytes(tokops_shared_begin, before.data(), before.size()); }
  } restore{before};
  run_blocks(order);
}

void* dynamic_shared() { return block->dynamic; }

bool is_shared(const void* p, size_t bytes) {
  const auto* c = static_cast<const unsigned char*>(p);
  return (c >= tokops_shared_begin && c + bytes <= tokops_shared_end) ||
         (c >= block->dynamic && c + bytes <= block->dynamic + now.shared_bytes);
}

int lane() { return self->linear & 31; }

void fail(const std::string& message, Site at) {
  error = message + ", " + place(*self) + " at " + place(at);
  Thread* const me = self;
  self = nullptr;
  me->fiber.switch_to(host);
  std::abort();  // the host never comes back to a failed launch
}

void yield() {
  if (++idle_turns > kIdleLimit)
    fail("no block ends: the threads seem to wait for something in a loop");
  switch_away();
}

const Meeting& meet(const void* mine, size_t bytes, const char* what, uint32_t mask, Site at) {
  const int w = self->linear / 32, l = self->linear % 32;
  if (!(mask >> l & 1)) fail(std::string(what) + ": the caller is not in its own mask", at);
  release(*self);
  Round* r = open_round(block->warps[w], mask, what);
  if (r->what != what && std::string_view(r->what) != what) {
    fail(std::string("warp divergence: other lanes wait in ") + r->what + ", this one in " + what,
         at);
  }
  if (bytes) std::memcpy(r->slot[l], mine, bytes);
  r->arrived |= 1u << l;
  r->holders++;
  self->round = r;
  if (r->mask & block->warps[w].live & ~r->arrived) {
    wait(what, at);
  } else {
    close_rounds(w);
  }
  return *r;
}

Votes block_barrier(const char* what, int predicate, Site at) {
  Barrier& b = block->barrier;
  if (!b.arrived) {
    b.what = what;
    b.at = at;
    b.votes = {0, 1, 0};
  } else if (b.at.line() != at.line() || std::string_view(b.what) != what ||
             std::string_view(b.at.file_name()) != at.file_name()) {
    fail("barrier divergence: others wait in " + std::string(b.what) + " at " + place(b.at) +
             ", this one came to " + what,
         at);
  }
  b.votes = {b.votes.count + (predicate != 0), b.votes.all && predicate, b.votes.any || predicate};
  const unsigned generation = b.generation;
  block->warps[self->linear / 32].at_barrier |= 1u << self->linear % 32;
  if (++b.arrived < block->live) {
    wait(what, at);
  } else {
    close_barrier();
  }
  return b.result[generation & 1];
}

void async_copy(void* shared, const void* global, int bytes, bool real, Site at) {
  if (uintptr_t(shared) % bytes || (real && uintptr_t(global) % bytes)) {
    fail("cp.async: an address that is not aligned to " + std::to_string(bytes) + " bytes", at);
  }
  if (!is_shared(shared, bytes)) fail("cp.async: a target outside shared memory", at);
  std::memset(shared, 0xff, bytes);  // from now on the old contents may be gone
  self->copies.push_back({shared, global, bytes, self->groups, real});
}

void async_commit() { ++self->groups; }

void async_wait(int groups) {
  auto& copies = self->copies;
  const auto landed = std::find_if(copies.begin(), copies.end(),
                                   [&](const Copy& c) { return c.group >= self->groups - groups; });
  std::for_each(copies.begin(), landed, [](const Copy& c) {
    if (c.real) {
      std::memcpy(c.to, c.from, c.bytes);
    } else {
      std::memset(c.to, 0, c.bytes);
    }
  });
  copies.erase(copies.begin(), landed);
}

}  // namespace tokops::sim

extern "C" __attribute__((visibility("default"))) void tokops_sim_seed(int seed) {
  tokops::sim::seed = uint64_t(seed);
  tokops_sim_seed_device(seed);
  tokops::sim::launches = 0;
}
