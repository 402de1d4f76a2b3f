// Which compiled instruction set runs: chosen once from what processor and operating system offer.
//
// How csrc/cpu is built (every file: -I csrc -std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -pthread):
//   fold_tile.cpp finish_rows.cpp grad_tile.cpp head_tile.cpp teca.cpp pool.cpp dispatch.cpp    once, no architecture flag
//   kernels.cpp    once per instruction set, everywhere:   -DCER_ISA=baseline
//                  and on x86-64:                          -DCER_ISA=avx2        -march=x86-64-v3
//                                                          -DCER_ISA=avx512      -march=x86-64-v4
//                                                          -DCER_ISA=avx512bf16  -march=x86-64-v4 -mavx512bf16
//                                                          -DCER_ISA=amxbf16     the same and -mamx-tile -mamx-bf16
//   dispatch.cpp itself: -DCER_HAS_ISA_<name> for every one of these that the compiler knew
#include "cpu/dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace cer::cpu {
namespace {

#if defined(__x86_64__)
// Each is asked only where the compiler knew the set ([[maybe_unused]]).
// __builtin_cpu_supports asks the operating system too (XGETBV); it does not know every part of x86-64-v3 by name.
[[maybe_unused]] bool runs_avx2() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C) || !(c & bit_MOVBE)) return false;
  return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}

[[maybe_unused]] bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool runs_avx512bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Matrix tiles are 8 KiB of state a thread: Linux gives them to a process that asks (Documentation/arch/x86/xstate.rst), for
// all of its threads. A kernel that knows no tiles, or a sandbox that refuses, answers with an error.
[[maybe_unused]] bool runs_amxbf16() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // CPUID leaf 7, EDX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!runs_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBf16) || !(d & kTile)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const IsaKernels*> runnable() {
  std::vector<const IsaKernels*> found{&baseline::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(CER_HAS_ISA_avx2)
  if (runs_avx2()) found.push_back(&avx2::kernels);
#endif
#if defined(CER_HAS_ISA_avx512)
  if (runs_avx512()) found.push_back(&avx512::kernels);
#endif
#if defined(CER_HAS_ISA_avx512bf16)
  if (runs_avx512bf16()) found.push_back(&avx512bf16::kernels);
#endif
#if defined(CER_HAS_ISA_amxbf16)
  if (runs_amxbf16()) found.push_back(&amxbf16::kernels);
#endif
#endif
  return found;
}

// Constant-initialised to null, so that its order among static initialisers does not matter.
std::atomic<const IsaKernels*> active{nullptr};

}  // namespace

const IsaKernels& active_kernels() {
  const IsaKernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) {
    const IsaKernels* best = runnable().back();
    // Whoever is first wins, set_isa included.
    kernels = active.compare_exchange_strong(kernels, best) ? best : active.load(std::memory_order_acquire);
  }
  return *kernels;
}

std::vector<std::string> compiled_isas() {
  return {
      baseline::kernels.name,
#if defined(CER_HAS_ISA_avx2)
      avx2::kernels.name,
#endif
#if defined(CER_HAS_ISA_avx512)
      avx512::kernels.name,
#endif
#if defined(CER_HAS_ISA_avx512bf16)
      avx512bf16::kernels.name,
#endif
#if defined(CER_HAS_ISA_amxbf16)
      amxbf16::kernels.name,
#endif
  };
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const IsaKernels* kernels : runnable()) names.emplace_back(kernels->name);
  return names;
}

std::string set_isa(const std::string& name) {
  const std::string before = active_kernels().name;
  for (const IsaKernels* kernels : runnable()) {
    if (name == kernels->name) {
      active.store(kernels, std::memory_order_release);
      return before;
    }
  }
  std::string known;
  for (const std::string& one : runnable_isas()) known += " " + one;
  throw std::invalid_argument("instruction set '" + name + "' is not among those this machine runs:" + known);
}

}  // namespace cer::cpu
