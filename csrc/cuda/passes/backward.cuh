// grad_weight = (g - mg) * factor_g + ((w - m) * factor_w + offset): r and rg enter it as one offset.
// csrc/standardize.h has the mathematics.
#pragma once

#include "../kernels.cuh"

namespace ws {

template <class W, class Y>
struct BackwardPass {
  using Args = Backward;
  using Weight = W;
  using Out = Y;
  using Grad = Y;
  using A = Accumulator<W>;
  static constexpr int kHeld = 2, kReplaced = 0;
  static constexpr bool kSquaresG = false;
  static constexpr int kResident = 512;

  struct Vectors {
    A gain;
  };
  struct Factors {
    A m, mg, factor_w, factor_g, offset;
  };

  // AnyArgs: also those of the passes that go on from grad_weight (norms.cuh, update.cuh).
  template <class AnyArgs>
  static __device__ __forceinline__ Vectors load(const AnyArgs& args, int64_t row) {
    const auto* const gain = static_cast<const W*>(args.vectors[AnyArgs::kGain]);
    return {gain ? widen(gain[row]) : A(1)};
  }

  template <class AnyArgs>
  static __device__ __forceinline__ Factors factors(const Moments<A>& x, const Vectors& by,
                                                    const AnyArgs& args, int64_t row, bool writes) {
    const A var = variance_of(x.squares, A(0), args.shape.cols, args.formula);
    const Channel<A> channel = channel_of(var, args.formula);
    A factor_g = channel.s * by.gain;
    A factor_w = slope_of(channel, x.dot, args.shape.cols, args.formula) * by.gain;
    // Of a channel that has nearly decayed to a constant, and counts as one: 0, as k is, and not NaN.
    if (isinf(factor_w)) factor_w = factor_g = 0;
    if constexpr (AnyArgs::kVectorResults > 0) {
      if (writes) {
        auto* const grad_gain = static_cast<W*>(args.vectors[AnyArgs::kGradGain]);
        auto* const grad_shift = static_cast<W*>(args.vectors[AnyArgs::kGradShift]);
        const A of_gain = channel.s * x.dot;
        if (grad_gain) store<1, true>(grad_gain + row, &of_gain);
        if (grad_shift) store<1, true>(grad_shift + row, &x.sum_g);
      }
    }
    return {x.m, x.mg, factor_w, factor_g, -(x.rg * factor_g + x.r * factor_w)};
  }

  static __device__ __forceinline__ void apply(const Factors& by, A& w, A g) {
    w = (g - by.mg) * by.factor_g + ((w - by.m) * by.factor_w + by.offset);
  }
};

template <class Args = Backward>
const Kernels<Args>& kernels_of(const Backward&, Types types) {
  return kKernels<BackwardPass, Args>[types];
}

}  // namespace ws
