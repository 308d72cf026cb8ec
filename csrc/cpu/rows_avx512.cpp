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

inline __m256i narrow_half(Float v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

inline Float load(const Half* p) { return _mm512_cvtph_ps(load_bits<__m256i>(p)); }
inline void store(Half* p, Float v) { _mm256_storeu_si256((__m256i*)p, narrow_half(v)); }

inline Float load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes16(n), p); }
inline Double load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(lanes8(n), p); }
inline Float load_first(const Half* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes16(n), p));
}
inline Float load_first(const BFloat16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes16(n), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store_first(float* p, Float v, int n) { _mm512_mask_storeu_ps(p, lanes16(n), v); }
inline void store_first(double* p, Double v, int n) { _mm512_mask_storeu_pd(p, lanes8(n), v); }
inline void store_first(Half* p, Float v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), narrow_half(v));
}
inline void store_first(BFloat16* p, Float v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), bit_cast<__m256i>(narrow_bfloat16(v)));
}

inline Float first(Float v, int n) { return _mm512_maskz_mov_ps(lanes16(n), v); }
inline Double first(Double v, int n) { return _mm512_maskz_mov_pd(lanes8(n), v); }

inline Float square_root(Float v) { return _mm512_sqrt_ps(v); }
inline Double square_root(Double v) { return _mm512_sqrt_pd(v); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Double multiply_add(Double a, Double b, Double c) { return _mm512_fmadd_pd(a, b, c); }

inline void stream(float* p, Float v) { _mm512_stream_ps(p, v); }
inline void end_of_streams() { _mm_sfence(); }

inline float sum(Float v) { return _mm512_reduce_add_ps(v); }
inline double sum(Double v) { return _mm512_reduce_add_pd(v); }

}  // namespace
}  // namespace ws

#include "kernels.inl"

namespace ws {
extern const CpuKernels kKernelsAvx512 = WS_CPU_KERNELS("avx512");
}
