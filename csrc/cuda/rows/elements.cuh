// Elements in memory and in registers: conversion, and accesses of one element or of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

namespace ws {

// The type of a row's statistics, and of its elements while they are in registers.
template <class Weight>
using Accumulator = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void narrow(double x, double& to) { to = x; }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// The built-in type that one access of so many bytes moves. Elements are moved as these, because
// the compiler does not merge accesses of __half or __nv_bfloat16 by itself.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// kCount elements as they lie in memory.
template <class T, int kCount>
using Word = typename WordOf<kCount * sizeof(T)>::Type;

// Streaming where a row is read only once: caches are better spent on the results, which the
// convolution reads next.
template <int kCount, bool kOnce, class T>
__device__ __forceinline__ Word<T, kCount> load(const T* from) {
  const auto* address = reinterpret_cast<const Word<T, kCount>*>(from);
  return kOnce ? __ldcs(address) : *address;
}

// Has the line of 128 bytes that an address is in brought into the second-level cache.
__device__ __forceinline__ void fetch([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

template <class T, int kCount, class A>
__device__ __forceinline__ void unpack(const Word<T, kCount>& word, A* values) {
  std::remove_const_t<T> elements[kCount];
  memcpy(static_cast<void*>(elements), &word, sizeof(word));
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = widen(elements[k]);
}

// With kGlobal, `to` is global memory. The intrinsic keeps the access whole: an assignment of 16 bytes
// is at times compiled as four of 4.
template <int kCount, bool kGlobal, class T, class A>
__device__ __forceinline__ void store(T* to, const A* values) {
  T elements[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) narrow(values[k], elements[k]);
  Word<T, kCount> word;
  memcpy(&word, elements, sizeof(word));
  auto* const address = reinterpret_cast<Word<T, kCount>*>(to);
  if constexpr (kGlobal) {
    __stwb(address, word);
  } else {
    *address = word;
  }
}

}  // namespace ws
