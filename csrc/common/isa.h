// One CPU kernel file, several instruction sets: each copy registers itself, the best one is
// called.
#pragma once
#include "common/backend.h"

namespace tokops::cpu {

enum class Isa : int { base, avx2, avxvnni, avx512, avx512bf16, amx, count };
Isa best_isa();  // what this CPU has; TOKOPS_CPU_ISA=<name> lowers it
const char* isa_name(Isa);
// Whether this is AMD's CPU: with the same instructions other choices are fast there than on
// Intel's. TOKOPS_CPU_TUNE=amd or intel says otherwise.
bool tuned_for_amd();

template <class Params>
struct Copies {
  void (*table[int(Isa::count)])(const Params&, const Queue&) = {};
  void run(const Params& p, const Queue& q) const {
    for (int i = int(best_isa()); i >= 0; --i)
      if (table[i]) return table[i](p, q);
  }
};

}  // namespace tokops::cpu

// Last line of an .isa.cpp. `fn` is this copy's tokops::fn(const Params&, const Queue&); the public
// tokops::name(const Params&, const Queue&) is emitted by the base copy alone.
#define TOKOPS_ISA_KERNEL(name, fn, Params)                                                        \
  namespace tokops::cpu {                                                                          \
  Copies<Params>& name##_copies();                                                                 \
  }                                                                                                \
  static const bool name##_registered =                                                            \
      (tokops::cpu::name##_copies().table[int(tokops::cpu::Isa::TOKOPS_ISA)] = &tokops::fn, true); \
  TOKOPS_ISA_PUBLIC(name, Params)
#if TOKOPS_ISA_IS_BASE
#define TOKOPS_ISA_PUBLIC(name, Params)                                          \
  namespace tokops::cpu {                                                        \
  Copies<Params>& name##_copies() {                                              \
    static Copies<Params> c;                                                     \
    return c;                                                                    \
  }                                                                              \
  }                                                                              \
  namespace tokops {                                                             \
  void name(const Params& p, const Queue& q) { cpu::name##_copies().run(p, q); } \
  }
#else
#define TOKOPS_ISA_PUBLIC(name, Params)
#endif
