#include "fiber.h"

// Keeps what the calling convention asks a function to keep, and leaves through the other stack's
// return address.
#if defined(__x86_64__)
asm(R"(
.text
.hidden tokops_sim_switch
.globl tokops_sim_switch
.type tokops_sim_switch, @function
tokops_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tokops_sim_switch, .-tokops_sim_switch
)");
#endif
