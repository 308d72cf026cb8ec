// What the vector types of every instruction set share, in GCC's and Clang's vector extensions,
// which work for any width.
//
// An instruction set's file defines kBytes, includes this header, and adds what needs intrinsics.
// All is in an unnamed namespace (see channel.h), and nothing comes from the standard library.
#pragma once

#include <cstdint>

namespace ws {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr int kFloats = kBytes / sizeof(float);
constexpr int kDoubles = kBytes / sizeof(double);
typedef float Float __attribute__((vector_size(kBytes)));
typedef double Double __attribute__((vector_size(kBytes)));
typedef uint32_t UInt32 __attribute__((vector_size(kBytes)));
typedef uint16_t UInt16 __attribute__((vector_size(kBytes / 2)));  // as many as Float's lanes

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V>
inline V load_bits(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline Float load(const float* p) { return load_bits<Float>(p); }
inline Double load(const double* p) { return load_bits<Double>(p); }
inline Float load(const BFloat16* p) {
  return bit_cast<Float>(__builtin_convertvector(load_bits<UInt16>(p), UInt32) << 16);
}

inline void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Double v) { __builtin_memcpy(p, &v, sizeof(v)); }
// Rounds to nearest even; NaN stays NaN. (AVX-512's own conversion flushes subnormal numbers.)
inline UInt16 narrow_bfloat16(Float v) {
  const UInt32 bits = bit_cast<UInt32>(v);
  const UInt32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UInt32 is_nan = bit_cast<UInt32>(v != v);
  return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), UInt16);
}
inline void store(BFloat16* p, Float v) {
  const UInt16 bits = narrow_bfloat16(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// Where an instruction set has no store past the caches, or none for the type.
template <class T, class V>
inline void stream(T* p, V v) {
  store(p, v);
}

}  // namespace
}  // namespace ws
