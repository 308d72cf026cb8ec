// The sum of a row's grad_weight^2, from its moments: with grad_weight = (g - mean) * factor_g +
// (w - mean) * factor_w, that is
//
//   factor_g^2 * squares_g + factor_w * (2 * factor_g * dot + factor_w * squares)
#pragma once

#include "backward.cuh"

namespace ws {

template <class A, class Factors>
__device__ __forceinline__ A squared_norm(const Moments<A>& x, const Factors& by) {
  const A squares = by.factor_g * by.factor_g * x.squares_g +
                    by.factor_w * (2 * by.factor_g * x.dot + by.factor_w * x.squares);
  return squares < 0 ? A(0) : squares;  // and NaN, of which no comparison is true, stays
}

template <class W, class Y>
struct NormsPass : BackwardPass<W, Y> {
  using Backwards = BackwardPass<W, Y>;
  using Args = Norms;
  using typename Backwards::A, typename Backwards::Factors, typename Backwards::Vectors;
  static constexpr int kReplaced = -1;
  static constexpr bool kSquaresG = true;

  static __device__ __forceinline__ Factors factors(const Moments<A>& x, const Vectors& vectors,
                                                    const Norms& args, int64_t row, bool writes) {
    const Factors by = Backwards::factors(x, vectors, args, row, writes);
    if (auto* const norms = static_cast<W*>(args.vectors[Norms::kSquaredNorm]); writes && norms) {
      const A squares = squared_norm(x, by);
      store<1, true>(norms + row, &squares);
    }
    return by;
  }
};

template <class Args = Norms>
const Kernels<Args>& kernels_of(const Norms&, Types types) {
  static constexpr Kernels<Args> of_float64 = kernels<NormsPass<double, double>>();
  static constexpr Kernels<Args> of_float16 = kernels<NormsPass<__half, __half>>();
  static constexpr Kernels<Args> of_bfloat16 = kernels<NormsPass<__nv_bfloat16, __nv_bfloat16>>();
  static constexpr Kernels<Args> of_float32 = kernels<NormsPass<float, Several>>();
  return types == kF64    ? of_float64
         : types == kF16  ? of_float16
         : types == kBF16 ? of_bfloat16
                          : of_float32;
}

}  // namespace ws
