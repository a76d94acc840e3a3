#include "common/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "common/op.h"

#if !TOKOPS_BACKEND_IS_CUDA && !TOKOPS_CUDA_SIM
namespace tokops {
namespace cpu {

static constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512bf16"};
const char* isa_name(Isa i) { return kNames[int(i)]; }

static Isa detect() {
  int have = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();      // also asks the OS whether it saves the wide registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  have = avx512 && __builtin_cpu_supports("avx512bf16") ? 3 : avx512 ? 2 : avx2 ? 1 : 0;
#endif
  if (const char* want = std::getenv("TOKOPS_CPU_ISA"))
    for (int i = 0; i <= have; ++i)
      if (std::strcmp(want, kNames[i]) == 0) return Isa(i);
  return Isa(have);
}
Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace cpu
std::string cpu_isa() { return cpu::isa_name(cpu::best_isa()); }
}  // namespace tokops

STABLE_TORCH_LIBRARY_FRAGMENT(tokops, m) { m.def("_cpu_isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(tokops, CompositeExplicitAutograd, m) { m.impl("_cpu_isa", TORCH_BOX(&tokops::cpu_isa)); }
#endif
