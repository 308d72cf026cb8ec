// The portable kernels: 16-byte vectors, which every x86-64 (SSE2) and 64-bit Arm (NEON) has.
namespace {
constexpr int kBytes = 16;
}

#include "kernels.h"
#include "vector.h"

namespace ws {
namespace {

inline Float load(const Half* p) {
  const UInt32 bits = __builtin_convertvector(load_bits<UInt16>(p), UInt32);
  const UInt32 sign = (bits & 0x8000) << 16;
  const UInt32 magnitude = (bits & 0x7fff) << 13;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, for subnormal numbers too.
  const UInt32 finite = bit_cast<UInt32>(bit_cast<Float>(magnitude) * 0x1p112f);
  const UInt32 is_finite = bit_cast<UInt32>(magnitude < (0x7c00u << 13));
  return bit_cast<Float>(sign | (finite & is_finite) | ((magnitude | 0x7f800000u) & ~is_finite));
}

// Rounds to nearest even; NaN stays NaN.
inline void store(Half* p, Float v) {
  const UInt32 sign = bit_cast<UInt32>(v) & 0x80000000u;
  const UInt32 magnitude = bit_cast<UInt32>(v) ^ sign;
  const UInt32 normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 puts the last bit of a subnormal result at the last bit of the sum, which rounds it.
  const UInt32 subnormal = bit_cast<UInt32>(bit_cast<Float>(magnitude) + 0.5f) - 0x3f000000u;
  const UInt32 is_subnormal = bit_cast<UInt32>(magnitude < 0x38800000u);
  const UInt32 is_large = bit_cast<UInt32>(magnitude >= 0x477ff000u);  // 65520: rounds to infinity
  const UInt32 is_nan = bit_cast<UInt32>(v != v);
  UInt32 half = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  half = (0x7c00 & is_large) | (half & ~is_large);
  half = (0x7e00 & is_nan) | (half & ~is_nan);
  const UInt16 bits = __builtin_convertvector(half | (sign >> 16), UInt16);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

inline Float square_root(Float v) {
  for (int i = 0; i < kFloats; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
inline Double square_root(Double v) {
  for (int i = 0; i < kDoubles; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}
inline Float multiply_add(Float a, Float b, Float c) {
#ifdef __FP_FAST_FMAF  // 64-bit Arm's, by name: of two products the compiler would fuse either
  for (int i = 0; i < kFloats; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
inline Double multiply_add(Double a, Double b, Double c) {
#ifdef __FP_FAST_FMA
  for (int i = 0; i < kDoubles; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

inline void end_of_streams() {}

inline float sum(Float v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline double sum(Double v) { return v[0] + v[1]; }

}  // namespace
}  // namespace ws

#include "vector_tail.h"
#include "kernels.inl"

namespace ws {
extern const CpuKernels kKernelsDefault = WS_CPU_KERNELS("default");
}
