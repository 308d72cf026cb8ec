// The kernels for AVX-512 (F, BW, VL, DQ): 64-byte vectors, masked at a row's end.
// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma.
#include <immintrin.h>

namespace {
constexpr int kBytes = 64;
}

#include "kernels.h"
#include "vector.h"

namespace ws {
namespace {

inline __mmask16 lanes16(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline __mmask8 lanes8(int n) { return static_cast<__mmask8>((1u << n) - 1); }

inline Float widen_half(__m256i bits) { return _mm512_cvtph_ps(bits); }
inline Float widen_bfloat16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m256i narrow_half(Float v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
inline __m256i narrow_bfloat16(Float v) {
  // not vcvtneps2bf16, which flushes subnormal numbers to zero
  return _mm512_cvtepi32_epi16(bit_cast<__m512i>(bfloat16_bits(v)));
}

inline Float load(const Half* p) { return widen_half(_mm256_loadu_si256((const __m256i*)p)); }
inline Float load(const BFloat16* p) {
  return widen_bfloat16(_mm256_loadu_si256((const __m256i*)p));
}
inline void store(Half* p, Float v) { _mm256_storeu_si256((__m256i*)p, narrow_half(v)); }
inline void store(BFloat16* p, Float v) { _mm256_storeu_si256((__m256i*)p, narrow_bfloat16(v)); }

inline Float load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes16(n), p); }
inline Double load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(lanes8(n), p); }
inline Float load_first(const Half* p, int n) {
  return widen_half(_mm256_maskz_loadu_epi16(lanes16(n), p));
}
inline Float load_first(const BFloat16* p, int n) {
  return widen_bfloat16(_mm256_maskz_loadu_epi16(lanes16(n), p));
}
inline void store_first(float* p, Float v, int n) { _mm512_mask_storeu_ps(p, lanes16(n), v); }
inline void store_first(double* p, Double v, int n) { _mm512_mask_storeu_pd(p, lanes8(n), v); }
inline void store_first(Half* p, Float v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), narrow_half(v));
}
inline void store_first(BFloat16* p, Float v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), narrow_bfloat16(v));
}

inline Float first(Float v, int n) { return _mm512_maskz_mov_ps(lanes16(n), v); }
inline Double first(Double v, int n) { return _mm512_maskz_mov_pd(lanes8(n), v); }

inline float sum(Float v) { return _mm512_reduce_add_ps(v); }
inline double sum(Double v) { return _mm512_reduce_add_pd(v); }

}  // namespace
}  // namespace ws

#include "rows.inl"

namespace ws {
extern const CpuKernels kKernelsAvx512 = WS_CPU_KERNELS("avx512");
}
