// The portable kernels: 16-byte vectors, which every x86-64 (SSE2) and 64-bit Arm (NEON) has.
namespace {
constexpr int kBytes = 16;
}

#include "kernels.h"
#include "vector.h"
#include "vector_tail.h"

namespace ws {
namespace {

template <class T>  // Half, BFloat16
inline Float load(const T* p) {
  Float v;
  for (int i = 0; i < kFloats; ++i) v[i] = scalar(p[i]);
  return v;
}
template <class T>
inline void store(T* p, Float v) {
  for (int i = 0; i < kFloats; ++i) set(p + i, v[i]);
}

inline float sum(Float v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline double sum(Double v) { return v[0] + v[1]; }

}  // namespace
}  // namespace ws

#include "rows.inl"

namespace ws {
extern const CpuKernels kKernelsDefault = WS_CPU_KERNELS("default");
}
