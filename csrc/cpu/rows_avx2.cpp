// The kernels for AVX2, FMA and F16C: 32-byte vectors. Compiled with -mavx2 -mfma -mf16c.
#include <immintrin.h>

namespace {
constexpr int kBytes = 32;
}

#include "kernels.h"
#include "vector.h"

namespace ws {
namespace {

inline Float load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Float load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline void store(Half* p, Float v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(BFloat16* p, Float v) {
  const __m256i bits = bit_cast<__m256i>(bfloat16_bits(v));
  // packus works within 128-bit halves, so the two results lie in quadwords 0 and 2
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

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

#include "vector_tail.h"
#include "rows.inl"

namespace ws {
extern const CpuKernels kKernelsAvx2 = WS_CPU_KERNELS("avx2");
}
