// The words at which threads meet, and cp.async.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace tokops::sim {
namespace {

constexpr long kIdleLimit = 20'000'000;

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

}  // namespace

void leave_meetings() {
  release(*self);
  close_rounds(self->linear / 32);
  close_barrier();
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
