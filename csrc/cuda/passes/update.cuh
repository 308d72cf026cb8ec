// grad_weight, scaled and clipped, for a step of an optimizer (csrc/update.h); then the out of the row that
// comes of it, as the forward pass makes it.
#pragma once

#include "forward.cuh"
#include "norms.cuh"

namespace ws {

// The out of an updated row, of which w is all that is left.
template <class W, class Y>
struct NextPass : ForwardPass<W, Y> {
  using Args = Update;
  using typename ForwardPass<W, Y>::Vectors;

  static __device__ __forceinline__ Vectors load(const Update& args, int64_t row) {
    const auto* const gain = static_cast<const W*>(args.vectors[Update::kNewGain]);
    const auto* const shift = static_cast<const W*>(args.vectors[Update::kNewShift]);
    return {gain ? widen(gain[row]) : 1, shift ? widen(shift[row]) : 0};
  }
};

template <class W, class Y>
struct UpdatePass : BackwardPass<W, Y> {
  using Backwards = BackwardPass<W, Y>;
  using Args = Update;
  using Next = NextPass<W, Y>;
  using typename Backwards::A, typename Backwards::Vectors;
  static constexpr int kReplaced = 1;
  static constexpr bool kSquaresG = true;

  struct Factors {
    typename Backwards::Factors of_grad;
    A scale;
  };

  // The gradient of a step, in the place of g.
  static __device__ __forceinline__ Factors factors(const Moments<A>& x, const Vectors& vectors,
                                                    const Update& args, int64_t row, bool) {
    const Step<A> by = step_of<A>(args.rule);
    Factors of{Backwards::factors(x, vectors, args, row, false), by.scale};
    const A n = static_cast<A>(args.shape.cols), mean = x.m + x.r, mean_g = x.mg + x.rg;
    if (args.rule.is_true) of.of_grad = {0, 0, 0, 1, 0};
    if (by.clip != 0) {
      const A squares =
          args.rule.is_true ? x.squares_g + n * mean_g * mean_g : squared_norm(x, of.of_grad);
      of.scale = clipped_scale(by, x.squares + n * mean * mean, squares);
    }
    return of;
  }

  static __device__ __forceinline__ void apply(const Factors& by, A w, A& g) {
    Backwards::apply(by.of_grad, w, g);
    g = w * by.scale;
  }
};

// One kernel has all types of outs and gradients beside float32 weights: it is by far the largest. There is
// none for float64.
inline const Kernels<Update>& kernels_of(const Update&, Types) {
  static constexpr Kernels<Update> of_float32 = kernels<UpdatePass<float, Several>>();
  return of_float32;
}

}  // namespace ws
