// Fibers, blocks and grids: who runs next, drawn from the seed.
#include "sim.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" void tokops_sim_seed_device(int seed);  // runtime.cpp

namespace tokops::sim {
namespace {

std::mutex one_launch;
uint64_t seed = 0, launches = 0;

// sim.cpp is built without AddressSanitizer and the red zones around shared variables are copied
// and filled like the rest; in assembly, because the sanitizer watches memcpy and memset.
void copy_bytes(unsigned char* to, const unsigned char* from, size_t n) {
#if defined(__x86_64__)
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
#else
  for (volatile unsigned char* out = to; n--;) *out++ = *from++;
#endif
}
void fill_bytes(unsigned char* to, unsigned char byte, size_t n) {
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
#else
  for (volatile unsigned char* out = to; n--;) *out++ = byte;
#endif
}
size_t static_bytes() { return size_t(tokops_shared_end - tokops_shared_begin); }

Thread* pick() {
  if (!block->ready) return nullptr;
  if (!(block->ready >> block->warp & 1) || (draw() & 255) >= now.stay)
    block->warp = draw.bit_of(block->ready);
  return block->threads[32 * block->warp + draw.bit_of(block->warps[block->warp].runnable)].get();
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

}  // namespace

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

void set_runnable(int warp, uint32_t lanes) {
  block->warps[warp].runnable |= lanes;
  if (block->warps[warp].runnable) block->ready |= 1u << warp;
}

void set_waiting() {
  const int warp = self->linear / 32;
  if (!(block->warps[warp].runnable &= ~(1u << self->linear % 32))) block->ready &= ~(1u << warp);
}

void switch_away(bool done) {
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

namespace {

[[noreturn]] void thread_main() {
  self->fiber.arrived();
  now.body(now.context);
  set_waiting();
  block->warps[self->linear / 32].live &= ~(1u << self->linear % 32);
  --block->live;
  leave_meetings();
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
  b.fresh = true;
}

Block* in_place = nullptr;  // whose static shared memory is where kernels look for it

// All kernels' variables are there, and a swap costs more than a short kernel.
void bring(Block& b) {
  if (in_place == &b) return;
  if (in_place) {
    in_place->statics.resize(static_bytes());
    copy_bytes(in_place->statics.data(), tokops_shared_begin, static_bytes());
  }
  if (b.fresh)
    fill_bytes(tokops_shared_begin, 0xff, static_bytes());
  else
    copy_bytes(tokops_shared_begin, b.statics.data(), static_bytes());
  b.fresh = false;
  in_place = &b;
}

// Runs a block until it pauses or ends.
void resume_block(Block& b) {
  block = &b;
  blockIdx = b.index;
  bring(b);
  self = pick();
  threadIdx = self->index;
  host.switch_to(self->fiber);
  if (!b.live) in_place = nullptr;
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
  in_place = nullptr;
  // Host statics of a kernel's object, if any, lie among its shared variables.
  std::vector<unsigned char> before(static_bytes());
  copy_bytes(before.data(), tokops_shared_begin, before.size());
  struct Restore {
    std::vector<unsigned char>& before;
    ~Restore() { copy_bytes(tokops_shared_begin, before.data(), before.size()); }
  } restore{before};
  run_blocks(order);
}

}  // namespace tokops::sim

extern "C" __attribute__((visibility("default"))) void tokops_sim_seed(int seed) {
  tokops::sim::seed = uint64_t(seed);
  tokops_sim_seed_device(seed);
  tokops::sim::launches = 0;
}
