// The kernels for AVX2, FMA and F16C: 32-byte vectors. Compiled with -mavx2 -mfma -mf16c.
#include <immintrin.h>

namespace {
constexpr int kBytes = 32;
}

#include "kernels.h"
#include "vector.h"

namespace ws {
namespace {

inline Float load(const Half* p) { return _mm256_cvtph_ps(load_bits<__m128i>(p)); }
inline void store(Half* p, Float v) {
  const __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// All ones in the first n lanes, of 4 or 8 bytes.
inline __m256i lanes4(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i lanes8(int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline Float load_first(const float* p, int n) { return _mm256_maskload_ps(p, lanes4(n)); }
inline Double load_first(const double* p, int n) { return _mm256_maskload_pd(p, lanes8(n)); }
inline void store_first(float* p, Float v, int n) { _mm256_maskstore_ps(p, lanes4(n), v); }
inline void store_first(double* p, Double v, int n) { _mm256_maskstore_pd(p, lanes8(n), v); }
inline Float first(Float v, int n) { return _mm256_and_ps(v, _mm256_castsi256_ps(lanes4(n))); }
inline Double first(Double v, int n) { return _mm256_and_pd(v, _mm256_castsi256_pd(lanes8(n))); }

inline Float square_root(Float v) { return _mm256_sqrt_ps(v); }
inline Double square_root(Double v) { return _mm256_sqrt_pd(v); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Double multiply_add(Double a, Double b, Double c) { return _mm256_fmadd_pd(a, b, c); }

inline void stream(float* p, Float v) { _mm256_stream_ps(p, v); }
inline void end_of_streams() { _mm_sfence(); }

inline float sum(Float v) {
  const __m128 quarters = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pairs = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}
inline double sum(Double v) {
  const __m128d pairs = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pairs, _mm_unpackhi_pd(pairs, pairs)));
}

}  // namespace
}  // namespace ws

#include "vector_tail.h"  // for 16-bit elements
#include "kernels.inl"

namespace ws {
extern const CpuKernels kKernelsAvx2 = WS_CPU_KERNELS("avx2");
}
