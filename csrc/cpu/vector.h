// What the vector types of every instruction set share: element types, scalar conversions, and
// operations that GCC's and Clang's vector extensions express for any width.
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

typedef float Float __attribute__((vector_size(kBytes)));
typedef double Double __attribute__((vector_size(kBytes)));
typedef uint32_t UInt32 __attribute__((vector_size(kBytes)));
constexpr int kFloats = kBytes / sizeof(float);
constexpr int kDoubles = kBytes / sizeof(double);

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Scalars. Conversions to 16 bits round to nearest even; NaN stays NaN.

inline double scalar(double x) { return x; }
inline float scalar(float x) { return x; }
inline float scalar(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float scalar(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, for subnormal numbers too.
  float f = bit_cast<float>(magnitude) * 0x1p112f;
  if (magnitude >= 0x7c00u << 13) f = bit_cast<float>(magnitude | 0x7f800000u);  // Inf, NaN
  return bit_cast<float>(bit_cast<uint32_t>(f) | sign);
}

inline void set(double* p, double x) { *p = x; }
inline void set(float* p, float x) { *p = x; }
inline void set(BFloat16* p, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void set(Half* p, float x) {
  const uint32_t sign = bit_cast<uint32_t>(x) & 0x80000000u;
  const uint32_t magnitude = bit_cast<uint32_t>(x) ^ sign;
  uint32_t half;
  if (x != x) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns its last bit and rounds
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  p->bits = static_cast<uint16_t>(half | (sign >> 16));
}

// Vectors.

inline Float load(const float* p) {
  Float v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline Double load(const double* p) {
  Double v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Double v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The 16 bits of each lane that make its bfloat16, in the lane's low half.
inline UInt32 bfloat16_bits(Float v) {
  const UInt32 bits = bit_cast<UInt32>(v);
  const UInt32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UInt32 is_nan = bit_cast<UInt32>(v != v);
  return (rounded & ~is_nan) | (0x7fc0 & is_nan);
}

}  // namespace
}  // namespace ws
