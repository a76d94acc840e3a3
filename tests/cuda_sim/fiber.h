// Stacks to switch between. On x86-64 a switch saves six registers; elsewhere ucontext does it.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Present where AddressSanitizer is: it must know which stack is in use.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* bottom,
                                                          size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* save, const void** bottom,
                                                           size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

#if defined(__x86_64__)
extern "C" void tokops_sim_switch(void** save, void* load);  // fiber.cpp
#endif

namespace tokops::sim {

class Fiber {
 public:
  Fiber() = default;  // the caller's own stack, known once it has been left
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (stack_) munmap(stack_ - kGuard, kGuard + kStack);
  }

  // Makes the next switch to this fiber call entry(), which must not return.
  void start(void (*entry)()) {
    if (!stack_) allocate();
#if defined(__x86_64__)
    void** top =
        reinterpret_cast<void**>(stack_ + kStack) - 2;  // entry sees the stack as after a call
    *top = reinterpret_cast<void*>(entry);
    pointer_ = top - 6;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    makecontext(&context_, entry, 0);
#endif
  }

  // Leaves this fiber for `next`; returns when somebody switches back, never if this fiber is
  // `done`.
  void switch_to(Fiber& next, bool done = false) {
    if (__sanitizer_start_switch_fiber) {
      __sanitizer_start_switch_fiber(done ? nullptr : &asan_, next.bottom_, next.size_);
    }
    next.left_ = this;
#if defined(__x86_64__)
    tokops_sim_switch(&pointer_, next.pointer_);
#else
    swapcontext(&context_, &next.context_);
#endif
    arrived();
  }

  // First thing on a fiber's stack: tells the sanitizer that the switch is over.
  void arrived() {
    if (!__sanitizer_finish_switch_fiber) return;
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(asan_, &bottom, &size);
    if (!left_->stack_) left_->bottom_ = bottom, left_->size_ = size;
    asan_ = nullptr;
  }

  // After frames were abandoned: their red zones mean nothing any more.
  void forget_frames() {
    if (stack_ && __asan_unpoison_memory_region) __asan_unpoison_memory_region(stack_, kStack);
    asan_ = nullptr;
  }

 private:
  static constexpr size_t kStack = 256 * 1024, kGuard = 4096;

  void allocate() {
    void* p = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mprotect(p, kGuard, PROT_NONE);  // an overflow faults instead of reaching the next stack
    stack_ = static_cast<char*>(p) + kGuard;
    bottom_ = stack_;
    size_ = kStack;
  }

  char* stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* asan_ = nullptr;
  Fiber* left_ = nullptr;  // who switched here last
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace tokops::sim
