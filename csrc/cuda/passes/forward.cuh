// out = (w - m) * factor + offset: r and shift enter it as one offset. csrc/standardize.h has the
// mathematics.
#pragma once

#include "../kernels.cuh"

namespace ws {

template <class W, class Y>
struct ForwardPass {
  using Args = Forward;
  using Weight = W;
  using Out = Y;
  using Grad = Y;
  using A = Accumulator<W>;
  static constexpr int kHeld = 1, kReplaced = 0;
  static constexpr bool kSquaresG = false;
  static constexpr int kResident = sizeof(W) == 8 ? 512 : 768;

  struct Vectors {
    A gain, shift;
  };
  struct Factors {
    A m, factor, offset;
  };

  static __device__ __forceinline__ Vectors load(const Forward& args, int64_t row) {
    const auto* const gain = static_cast<const W*>(args.vectors[Forward::kGain]);
    const auto* const shift = static_cast<const W*>(args.vectors[Forward::kShift]);
    return {gain ? widen(gain[row]) : A(1), shift ? widen(shift[row]) : A(0)};
  }

  template <class AnyArgs>  // Update's too (update.cuh)
  static __device__ __forceinline__ Factors factors(const Moments<A>& x, const Vectors& by,
                                                    const AnyArgs& args, int64_t, bool) {
    const A var = variance_of(x.squares, A(0), args.shape.cols, args.formula);
    const A factor = channel_of(var, args.formula).s * by.gain;
    return {x.m, factor, by.shift - x.r * factor};
  }

  static __device__ __forceinline__ void apply(const Factors& by, A& w) {
    w = (w - by.m) * by.factor + by.offset;
  }
};

// A template, as backward's: a pass that goes on from this one is not to have its kernels compiled.
template <class Args = Forward>
const Kernels<Args>& kernels_of(const Forward&, Types types) {
  return kKernels<ForwardPass, Args>[types];
}

}  // namespace ws
