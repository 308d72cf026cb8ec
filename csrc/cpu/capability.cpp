// Which instruction set's kernels run: the first in the list that this machine supports, unless
// WS_CPU_CAPABILITY or set_cpu_capability asks for a lower one.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace ws {
namespace {

struct Candidate {
  const CpuKernels* kernels;
  bool (*supported)();
};

// Best first. __builtin_cpu_supports also asks whether the operating system saves the registers.
const Candidate kCandidates[] = {
#ifdef WS_X86
    {&kKernelsAvx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
    {&kKernelsAvx2,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {&kKernelsDefault, [] { return true; }},
};

const CpuKernels* find(const char* name) {
  for (const Candidate& candidate : kCandidates) {
    const bool wanted = name == nullptr || std::strcmp(name, candidate.kernels->name) == 0;
    if (wanted && candidate.supported()) return candidate.kernels;
  }
  return nullptr;
}

const CpuKernels* initial() {
  const CpuKernels* wanted = find(std::getenv("WS_CPU_CAPABILITY"));
  return wanted != nullptr ? wanted : find(nullptr);
}

std::atomic<const CpuKernels*> current{nullptr};

}  // namespace

const CpuKernels& cpu_kernels() {
  const CpuKernels* kernels = current.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = initial();
    current.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

bool set_cpu_capability(const char* name) {
  const CpuKernels* kernels = find(name);
  if (kernels != nullptr) current.store(kernels, std::memory_order_release);
  return kernels != nullptr;
}

}  // namespace ws
