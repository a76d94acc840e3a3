#include "common/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/op.h"

#if !TOKOPS_BACKEND_IS_CUDA && !TOKOPS_CUDA_SIM
namespace tokops {
namespace cpu {

static constexpr const char* kNames[] = {"base", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"};
const char* isa_name(Isa i) { return kNames[int(i)]; }

#if defined(__x86_64__)
// AMX tiles with bf16 products. Linux saves their registers only for a process that has asked
// (ARCH_REQ_XCOMP_PERM for component 18, tile data).
static bool has_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__x86_64__)
// AVX-VNNI: products of bytes in 256 bits, which CPUs without AVX-512 have too.
static bool has_byte_products() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

static Isa detect() {
  bool has[int(Isa::count)] = {true};
#if defined(__x86_64__)
  __builtin_cpu_init();  // also asks the OS whether it saves the wide registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  has[int(Isa::avx2)] = avx2;
  has[int(Isa::avxvnni)] = avx2 && has_byte_products();
  has[int(Isa::avx512)] = avx512;
  has[int(Isa::avx512bf16)] = bf16;
  has[int(Isa::amx)] = bf16 && has_tiles();
#endif
  int best = 0;
  for (int i = 0; i < int(Isa::count); ++i)
    if (has[i]) best = i;
  if (const char* want = std::getenv("TOKOPS_CPU_ISA"))
    for (int i = 0; i <= best; ++i)
      if (has[i] && std::strcmp(want, kNames[i]) == 0) return Isa(i);
  return Isa(best);
}
Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

static bool detect_amd() {
  if (const char* want = std::getenv("TOKOPS_CPU_TUNE")) {
    if (std::strcmp(want, "amd") == 0) return true;
    if (std::strcmp(want, "intel") == 0) return false;
  }
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}
bool tuned_for_amd() {
  static const bool amd = detect_amd();
  return amd;
}

}  // namespace cpu
std::string cpu_isa() { return cpu::isa_name(cpu::best_isa()); }
}  // namespace tokops

STABLE_TORCH_LIBRARY_FRAGMENT(tokops, m) { m.def("_cpu_isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(tokops, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&tokops::cpu_isa));
}
#endif
