// The forward kernels. The mathematics: csrc/standardize.h, and moments.cuh for the sums.
//
// A row that fits its team's registers is read from memory once and written once; one that is split
// over blocks is read again, from the cache if it can be.
#pragma once

#include "../launch/batch.h"
#include "../launch/launch.h"
#include "../launch/tiers.h"
#include "../rows/moments.cuh"
#include "../rows/stretch.cuh"

namespace ws {

template <class Weight, class Out>
using ForwardTiers = Tiers<Weight, Out, sizeof(Weight) == 8 ? 20 : 40, 4>;

// out = (w - m) * factor + offset: r and shift enter it as one offset.
template <class A>
struct Affine {
  A m, factor, offset;
};

template <class Weight, class A>
__device__ __forceinline__ Affine<A> affine_of(const Moments<A>& x, const Forward& args,
                                               int64_t row) {
  const A var = variance_of(x.squares, A(0), args.shape.cols, args.formula);
  A factor = channel_of(var, args.formula).s;
  if (args.gain) factor *= widen(static_cast<const Weight*>(args.gain)[row]);
  A offset = -x.r * factor;
  if (args.shift) offset += widen(static_cast<const Weight*>(args.shift)[row]);
  return {x.m, factor, offset};
}

template <class A, int kElements>
__device__ __forceinline__ void apply(const Affine<A>& by, A (&w)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) w[i] = (w[i] - by.m) * by.factor + by.offset;
}

// A team's rows, from `row` on, as far as there are: from(k) to to(k) for k < count.
template <class Weight, int kTeam, int kElements, int kRows, int kGroup, bool kGlobal, class From,
          class To>
__device__ __forceinline__ void forward_rows(const Forward& args, Team<kTeam>& team, int64_t row,
                                             int64_t count, From from, To to) {
  using A = Accumulator<Weight>;
  const auto cols = static_cast<int32_t>(args.shape.cols);
  Columns<kTeam, kGroup, int32_t> columns[kRows];
  A w[kRows][kElements], pivot[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    columns[k] = {team.thread * kGroup, k < count ? cols : 0};
    read<kGlobal>(from(k), columns[k], 0, w[k]);
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k) pivot[k] = k < count ? widen(from(k).data[0]) : A(0);
  Moments<A> x[kRows];
  find_moments<false>(team, w, w, columns, 0, pivot, static_cast<A>(cols), args.formula.center,
                      false, x);
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (k >= count) break;
    apply(affine_of<Weight>(x[k], args, row + k), w[k]);
    write<kGlobal>(to(k), columns[k], 0, w[k]);
  }
}

// Block number `block` of an entry.
template <class Weight, class Out, int kTier>
__device__ __forceinline__ void forward_block(const Entry<Forward>& entry, uint32_t block) {
  using A = Accumulator<Weight>;
  constexpr Tier tier = ForwardTiers<Weight, Out>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? kVec<Weight, Out> : 1;
  const Forward& args = entry.args;
  Team<tier.team> team;
  const int64_t first = static_cast<int64_t>(block) * entry.rows;
  if constexpr (tier.access == Access::kFlat) {
    constexpr int kVectors = kVec<Weight, Out>;
    const int64_t left = args.shape.rows - first;
    const int rows = static_cast<int>(left < entry.rows ? left : entry.rows);
    const int cols = static_cast<int>(args.shape.cols);
    const Stretch<const Weight, A, kVectors> weight(
        static_cast<const Weight*>(args.weight) + first * cols, rows * cols);
    A* const tile = shared_tile<A, kTile<A> + kVectors, 0>();
    weight.template load_to<kTile<A>>(tile);
    __syncthreads();
    for (int i = team.index; i < rows; i += tier.threads() / tier.team) {
      const auto at = [&](int) { return Row<A, int32_t>(tile + weight.phase + i * cols); };
      forward_rows<Weight, tier.team, tier.elements, tier.rows, kGroup, false>(
          args, team, first + i, 1, at, at);
    }
    __syncthreads();
    const Stretch<Out, A, kVectors> out(static_cast<Out*>(args.out) + first * cols, rows * cols);
    out.template store_from<kTile<A>>(tile + weight.phase, weight.phase == out.phase);
  } else {
    const int64_t row = first + team.index * tier.rows;
    if (row >= args.shape.rows) return;
    forward_rows<Weight, tier.team, tier.elements, tier.rows, kGroup, true>(
        args, team, row, args.shape.rows - row,
        [&](int k) {
          return Row<const Weight, int32_t>(args.weight, row + k, args.shape, args.weight_strides);
        },
        [&](int k) { return Row<Out, int32_t>(args.out, row + k, args.shape, args.out_strides); });
  }
}

// An SM has to hold one block at least. Left to itself, the compiler spills registers to fit more.
template <class Weight, class Out, int kThreads, class Batch>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ Batch batch) {
  const int i = batch.entry_of(blockIdx.x);
  const uint32_t block = blockIdx.x - batch.first_block[i];
  with_tier<ForwardTiers<Weight, Out>, kThreads>(batch.entries[i].tier, [&](auto tier) {
    forward_block<Weight, Out, tier()>(batch.entries[i], block);
  });
}

// Split rows: the moments of every chunk of a row, then the row's from those, and the results.
template <class Weight, class Out, int kTier, bool kApply>
__global__ void __launch_bounds__(512, 1)
    forward_split_kernel(const __grid_constant__ Split<Forward> split) {
  using A = Accumulator<Weight>;
  constexpr Tier tier = ForwardTiers<Weight, Out>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? kVec<Weight, Out> : 1;
  constexpr int64_t kStep = tier.team * tier.elements;
  const Forward& args = split.args;
  Team<tier.team> team;
  const int64_t row = split.row(), begin = split.begin(), end = split.end();
  const Row<const Weight, int64_t> weight(args.weight, row, args.shape, args.weight_strides);
  const Columns<tier.team, kGroup, int64_t> columns[1] = {{team.thread * kGroup, end}};
  auto* const moments = static_cast<Moments<A>*>(split.moments);
  A w[1][tier.elements];
  if constexpr (kApply) {
    const Moments<A> x =
        combine(team, moments + row * split.chunks, split.chunks, static_cast<A>(args.shape.cols),
                [&](int chunk) { return split.cols_of(chunk); });
    const Affine<A> by = affine_of<Weight>(x, args, row);
    const Row<Out, int64_t> out(args.out, row, args.shape, args.out_strides);
    for (int64_t tile = begin; tile < end; tile += kStep) {
      read<true>(weight, columns[0], tile, w[0]);
      apply(by, w[0]);
      write<true>(out, columns[0], tile, w[0]);
    }
  } else {
    const A pivot[1] = {widen(weight.data[0])};
    Moments<A> x;
    for (int64_t tile = begin; tile < end; tile += kStep) {
      read<false>(weight, columns[0], tile, w[0]);
      const A n = static_cast<A>(end - tile < kStep ? end - tile : kStep);
      Moments<A> part[1];
      find_moments<false>(team, w, w, columns, tile, pivot, n, args.formula.center, false, part);
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
constexpr Kernels<Forward> forward_kernels() {
  using Table = ForwardTiers<Weight, Out>;
  constexpr int kSplit = split_tier<Table>(Access::kVector);
  constexpr int kScalarSplit = split_tier<Table>(Access::kScalar);
  return {sizeof(Weight),
          sizeof(Out),
          Table::kGroup,
          Table::list,
          tier_of<Table>,
          sizeof(Moments<Accumulator<Weight>>),
          forward_kernel<Weight, Out, 128, Batch<Forward, kSmallBytes>>,
          forward_kernel<Weight, Out, 128, Batch<Forward, kLargeBytes>>,
          forward_kernel<Weight, Out, 512, Batch<Forward, kSmallBytes>>,
          {forward_split_kernel<Weight, Out, kSplit, false>,
           forward_split_kernel<Weight, Out, kScalarSplit, false>},
          {forward_split_kernel<Weight, Out, kSplit, true>,
           forward_split_kernel<Weight, Out, kScalarSplit, true>}};
}

constexpr Kernels<Forward> kForwardKernels[kTypesCount] = {
    forward_kernels<double, double>(), forward_kernels<float, float>(),
    forward_kernels<__half, __half>(), forward_kernels<__nv_bfloat16, __nv_bfloat16>(),
    forward_kernels<float, __half>(),  forward_kernels<float, __nv_bfloat16>(),
};

inline const Kernels<Forward>& kernels_of(const Forward&, Types types) {
  return kForwardKernels[types];
}

}  // namespace ws
