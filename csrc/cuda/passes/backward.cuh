// The backward kernels. The mathematics: csrc/standardize.h, and moments.cuh for the sums.
//
// As in forward.cuh, with two inputs: w, and g = grad.
#pragma once

#include "../launch/batch.h"
#include "../launch/launch.h"
#include "../launch/tiers.h"
#include "../rows/moments.cuh"
#include "../rows/stretch.cuh"

namespace ws {

template <class Weight, class Out>
using BackwardTiers = Tiers<Weight, Out, sizeof(Weight) == 8 ? 18 : 36, 2>;

// grad_weight = (g - mg) * factor_g + ((w - m) * factor_w + offset): r and rg enter it as one offset.
template <class A>
struct Slopes {
  A m, mg, factor_w, factor_g, offset;
};

// `writes`: whether this thread is to write the gradients of gain and shift.
template <class Weight, class A>
__device__ __forceinline__ Slopes<A> slopes_of(const Moments<A>& x, const Backward& args,
                                               int64_t row, bool writes) {
  const A var = variance_of(x.squares, A(0), args.shape.cols, args.formula);
  const Channel<A> channel = channel_of(var, args.formula);
  const A gain = args.gain ? widen(static_cast<const Weight*>(args.gain)[row]) : A(1);
  A factor_g = channel.s * gain;
  A factor_w = slope_of(channel, x.dot, args.shape.cols, args.formula) * gain;
  // Of a channel that has nearly decayed to a constant, and counts as one: 0, as k is, and not NaN.
  if (isinf(factor_w)) factor_w = factor_g = 0;
  if (writes) {
    const A grad_gain = channel.s * x.dot;
    if (args.grad_gain) store<1, true>(static_cast<Weight*>(args.grad_gain) + row, &grad_gain);
    if (args.grad_shift) store<1, true>(static_cast<Weight*>(args.grad_shift) + row, &x.sum_g);
  }
  return {x.m, x.mg, factor_w, factor_g, -(x.rg * factor_g + x.r * factor_w)};
}

template <class A, int kElements>
__device__ __forceinline__ void apply(const Slopes<A>& by, A (&w)[kElements],
                                      const A (&g)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    w[i] = (g[i] - by.mg) * by.factor_g + ((w[i] - by.m) * by.factor_w + by.offset);
  }
}

// A team's rows, from `row` on, as far as there are: weight(k) and grad(k) to to(k) for k < count.
template <class Weight, int kTeam, int kElements, int kRows, int kGroup, bool kGlobal,
          class WeightRow, class GradRow, class To>
__device__ __forceinline__ void backward_rows(const Backward& args, Team<kTeam>& team, int64_t row,
                                              int64_t count, WeightRow weight, GradRow grad,
                                              To to) {
  using A = Accumulator<Weight>;
  const auto cols = static_cast<int32_t>(args.shape.cols);
  Columns<kTeam, kGroup, int32_t> columns[kRows];
  A w[kRows][kElements], g[kRows][kElements], pivot[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    columns[k] = {team.thread * kGroup, k < count ? cols : 0};
    read<kGlobal>(weight(k), columns[k], 0, w[k]);
    read<kGlobal>(grad(k), columns[k], 0, g[k]);
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k) pivot[k] = k < count ? widen(weight(k).data[0]) : A(0);
  Moments<A> x[kRows];
  find_moments<true>(team, w, g, columns, 0, pivot, static_cast<A>(cols), args.formula.center,
                     args.grad_shift != nullptr, x);
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (k >= count) break;
    apply(slopes_of<Weight>(x[k], args, row + k, team.thread == 0), w[k], g[k]);
    write<kGlobal>(to(k), columns[k], 0, w[k]);
  }
}

// Block number `block` of an entry.
template <class Weight, class Out, int kTier>
__device__ __forceinline__ void backward_block(const Entry<Backward>& entry, uint32_t block) {
  using A = Accumulator<Weight>;
  constexpr Tier tier = BackwardTiers<Weight, Out>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? kVec<Weight, Out> : 1;
  const Backward& args = entry.args;
  Team<tier.team> team;
  const int64_t first = static_cast<int64_t>(block) * entry.rows;
  if constexpr (tier.access == Access::kFlat) {
    constexpr int kVectors = kVec<Weight, Out>;
    const int64_t left = args.shape.rows - first;
    const int rows = static_cast<int>(left < entry.rows ? left : entry.rows);
    const int cols = static_cast<int>(args.shape.cols);
    const Stretch<const Weight, A, kVectors> weight(
        static_cast<const Weight*>(args.weight) + first * cols, rows * cols);
    const Stretch<const Out, A, kVectors> grad(static_cast<const Out*>(args.grad) + first * cols,
                                               rows * cols);
    A* const tile = shared_tile<A, kTile<A> + kVectors, 0>();
    A* const tile_g = shared_tile<A, kTile<A> + kVectors, 1>();
    weight.template load_to<kTile<A>>(tile);
    grad.template load_to<kTile<A>>(tile_g);
    __syncthreads();
    for (int i = team.index; i < rows; i += tier.threads() / tier.team) {
      const auto at = [&](int) { return Row<A, int32_t>(tile + weight.phase + i * cols); };
      const auto at_g = [&](int) { return Row<A, int32_t>(tile_g + grad.phase + i * cols); };
      backward_rows<Weight, tier.team, tier.elements, tier.rows, kGroup, false>(
          args, team, first + i, 1, at, at_g, at);
    }
    __syncthreads();
    const Stretch<Weight, A, kVectors> grad_weight(
        static_cast<Weight*>(args.grad_weight) + first * cols, rows * cols);
    grad_weight.template store_from<kTile<A>>(tile + weight.phase,
                                              weight.phase == grad_weight.phase);
  } else {
    const int64_t row = first + team.index * tier.rows;
    if (row >= args.shape.rows) return;
    backward_rows<Weight, tier.team, tier.elements, tier.rows, kGroup, true>(
        args, team, row, args.shape.rows - row,
        [&](int k) {
          return Row<const Weight, int32_t>(args.weight, row + k, args.shape, args.weight_strides);
        },
        [&](int k) {
          return Row<const Out, int32_t>(args.grad, row + k, args.shape, args.grad_strides);
        },
        [&](int k) {
          return Row<Weight, int32_t>(args.grad_weight, row + k, args.shape,
                                      args.grad_weight_strides);
        });
  }
}

// Blocks of 128 that an SM has to hold: one fewer for want of a few registers would cost a quarter of
// the bytes in flight. Larger blocks have as many registers as a thread can have.
template <class Weight, class Out, int kThreads, class Batch>
__global__ void __launch_bounds__(kThreads, kThreads == 128 ? 4 : 1)
    backward_kernel(const __grid_constant__ Batch batch) {
  const int i = batch.entry_of(blockIdx.x);
  const uint32_t block = blockIdx.x - batch.first_block[i];
  with_tier<BackwardTiers<Weight, Out>, kThreads>(batch.entries[i].tier, [&](auto tier) {
    backward_block<Weight, Out, tier()>(batch.entries[i], block);
  });
}

// Split rows: the moments of every chunk of a row, then the row's from those, and the results.
template <class Weight, class Out, int kTier, bool kApply>
__global__ void __launch_bounds__(512, 1)
    backward_split_kernel(const __grid_constant__ Split<Backward> split) {
  using A = Accumulator<Weight>;
  constexpr Tier tier = BackwardTiers<Weight, Out>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? kVec<Weight, Out> : 1;
  constexpr int64_t kStep = tier.team * tier.elements;
  const Backward& args = split.args;
  Team<tier.team> team;
  const int64_t row = split.row(), begin = split.begin(), end = split.end();
  const Row<const Weight, int64_t> weight(args.weight, row, args.shape, args.weight_strides);
  const Row<const Out, int64_t> grad(args.grad, row, args.shape, args.grad_strides);
  const Columns<tier.team, kGroup, int64_t> columns[1] = {{team.thread * kGroup, end}};
  auto* const moments = static_cast<Moments<A>*>(split.moments);
  A w[1][tier.elements], g[1][tier.elements];
  if constexpr (kApply) {
    const Moments<A> x =
        combine(team, moments + row * split.chunks, split.chunks, static_cast<A>(args.shape.cols),
                [&](int chunk) { return split.cols_of(chunk); });
    const Slopes<A> by = slopes_of<Weight>(x, args, row, begin == 0 && team.thread == 0);
    const Row<Weight, int64_t> grad_weight(args.grad_weight, row, args.shape,
                                           args.grad_weight_strides);
    for (int64_t tile = begin; tile < end; tile += kStep) {
      read<true>(weight, columns[0], tile, w[0]);
      read<true>(grad, columns[0], tile, g[0]);
      apply(by, w[0], g[0]);
      write<true>(grad_weight, columns[0], tile, w[0]);
    }
  } else {
    const A pivot[1] = {widen(weight.data[0])};
    Moments<A> x;
    for (int64_t tile = begin; tile < end; tile += kStep) {
      read<false>(weight, columns[0], tile, w[0]);
      read<false>(grad, columns[0], tile, g[0]);
      const A n = static_cast<A>(end - tile < kStep ? end - tile : kStep);
      Moments<A> part[1];
      find_moments<true>(team, w, g, columns, tile, pivot, n, args.formula.center,
                         args.grad_shift != nullptr, part);
      if (tile == begin) {
        x = part[0];
      } else {
        merge(x, static_cast<A>(tile - begin), part[0], n);
      }
    }
    if (team.thread == 0) moments[blockIdx.x] = x;
  }
}

template <class Weight, class Out>
constexpr Kernels<Backward> backward_kernels() {
  using Table = BackwardTiers<Weight, Out>;
  constexpr int kSplit = split_tier<Table>(Access::kVector);
  constexpr int kScalarSplit = split_tier<Table>(Access::kScalar);
  return {sizeof(Weight),
          sizeof(Out),
          Table::kGroup,
          Table::list,
          tier_of<Table>,
          sizeof(Moments<Accumulator<Weight>>),
          backward_kernel<Weight, Out, 128, Batch<Backward, kSmallBytes>>,
          backward_kernel<Weight, Out, 128, Batch<Backward, kLargeBytes>>,
          backward_kernel<Weight, Out, 512, Batch<Backward, kSmallBytes>>,
          {backward_split_kernel<Weight, Out, kSplit, false>,
           backward_split_kernel<Weight, Out, kScalarSplit, false>},
          {backward_split_kernel<Weight, Out, kSplit, true>,
           backward_split_kernel<Weight, Out, kScalarSplit, true>}};
}

constexpr Kernels<Backward> kBackwardKernels[kTypesCount] = {
    backward_kernels<double, double>(), backward_kernels<float, float>(),
    backward_kernels<__half, __half>(), backward_kernels<__nv_bfloat16, __nv_bfloat16>(),
    backward_kernels<float, __half>(),  backward_kernels<float, __nv_bfloat16>(),
};

inline const Kernels<Backward>& kernels_of(const Backward&, Types types) {
  return kBackwardKernels[types];
}

}  // namespace ws
