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
  using A = Accumulator<W>;
  static constexpr int kWide = sizeof(W) == 8 ? 20 : 40, kTeamRows = 4;
  // Left to itself, the compiler spills registers to fit more.
  static constexpr int kBlocks = 1;

  struct Factors {
    A m, factor, offset;
  };

  static __device__ __forceinline__ bool needs_sum(const Forward&) { return false; }

  static __device__ __forceinline__ Factors factors(const Moments<A>& x, const Forward& args,
                                                    int64_t row, bool) {
    const auto* const gain = static_cast<const W*>(args.vectors[Forward::kGain]);
    const auto* const shift = static_cast<const W*>(args.vectors[Forward::kShift]);
    const A var = variance_of(x.squares, A(0), args.shape.cols, args.formula);
    A factor = channel_of(var, args.formula).s;
    if (gain) factor *= widen(gain[row]);
    A offset = -x.r * factor;
    if (shift) offset += widen(shift[row]);
    return {x.m, factor, offset};
  }

  static __device__ __forceinline__ void apply(const Factors& by, A& w) {
    w = (w - by.m) * by.factor + by.offset;
  }
};

inline const Kernels<Forward>& kernels_of(const Forward&, Types types) {
  return kKernels<ForwardPass>[types];
}

}  // namespace ws
