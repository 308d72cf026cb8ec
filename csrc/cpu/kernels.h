// The CPU kernels of one instruction set, and the choice among them at run time.
#pragma once

#include "../standardize.h"

namespace ws {

// Rows [begin, end) of a weight whose rows are dense (shape.run == shape.cols).
template <class Args>
using RowsKernel = void (*)(const Args&, int64_t begin, int64_t end);

struct CpuKernels {
  const char* name;  // as cpu_capability() reports it
  // null for types that the pass lacks
  RowsKernel<Forward> forward[kTypesCount];
  RowsKernel<Backward> backward[kTypesCount];
  RowsKernel<Norms> norms[kTypesCount];
  RowsKernel<Update> update[kTypesCount];
};

extern const CpuKernels kKernelsDefault;
#ifdef WS_X86
extern const CpuKernels kKernelsAvx2;
extern const CpuKernels kKernelsAvx512;
#endif

// The kernels in use: the best that this machine has, or what WS_CPU_CAPABILITY lowers it to.
WS_API const CpuKernels& cpu_kernels();

// Chooses by name and returns true, or changes nothing where this machine cannot run it.
WS_API bool set_cpu_capability(const char* name);

}  // namespace ws
