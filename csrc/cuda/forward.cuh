#pragma once

#include "../channel.h"
#include "launch.h"
#include "rows.cuh"
#include "team.cuh"

namespace ws {

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident>
__global__ void __launch_bounds__(block_threads(kTeam))
    forward_kernel(const __grid_constant__ Forward args) {
  using A = Accumulator<Weight>;
  using Index = std::conditional_t<kResident, int32_t, int64_t>;
  constexpr int kGroup = kVector ? kVec<Weight, Out> : 1;
  constexpr Index kTile = kTeam * kElements;

  Team<kTeam> team;
  const int64_t row = team.row();
  if (row >= args.shape.rows) return;
  const Row<const Weight, Index> weight(static_cast<const Weight*>(args.weight), row, args.shape,
                                        args.weight_strides);
  const Row<Out, Index> out(static_cast<Out*>(args.out), row, args.shape, args.out_strides);
  const auto cols = static_cast<Index>(args.shape.cols);
  const Columns<kTeam, kGroup, Index> columns(team.thread, cols);
  const Index end = kResident ? 1 : cols;  // a resident row is one tile
  const bool center = args.formula.center;

  A w[kElements];
  if (kResident) read<true>(weight, columns, Index(0), w);

  // pass 1
  A m = 0, r = 0;
  if (center) {
    A pivot;
    load<1, false>(weight.data, &pivot);
    A sum[1] = {0};
    for (Index tile = 0; tile < end; tile += kTile) {
      if (!kResident) read<false>(weight, columns, tile, w);
      A part = 0;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (columns.has(tile, i)) part += w[i] - pivot;
      }
      sum[0] += part;
    }
    team.sum(sum);
    m = pivot + sum[0] / cols;
  }

  // pass 2
  A sums[2] = {0, 0};
  for (Index tile = 0; tile < end; tile += kTile) {
    if (!kResident) read<false>(weight, columns, tile, w);
    A part[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (columns.has(tile, i)) {
        const A dw = w[i] - m;
        part[0] += dw;
        part[1] += dw * dw;
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) sums[k] += part[k];
  }
  team.sum(sums);
  if (center) r = sums[0] / cols;
  const A var = variance_of(sums[1], r, args.shape.cols, args.formula);
  A factor = channel_of(var, args.formula).s;
  A shift = 0;
  if (args.gain) factor *= widen(static_cast<const Weight*>(args.gain)[row]);
  if (args.shift) shift = widen(static_cast<const Weight*>(args.shift)[row]);

  // pass 3
  for (Index tile = 0; tile < end; tile += kTile) {
    if (!kResident) read<false>(weight, columns, tile, w);
#pragma unroll
    for (int i = 0; i < kElements; ++i) w[i] = ((w[i] - m) - r) * factor + shift;
    write(out, columns, tile, w);
  }
}

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident = true>
constexpr Tier<Forward> forward_tier(const char* name) {
  return {name, kResident ? kTeam * kElements : INT64_MAX, kTeam, kElements,
          forward_kernel<Weight, Out, kTeam, kElements, kVector, kResident>};
}

template <class Weight, class Out>
constexpr Tiers<Forward> forward_tiers() {
  constexpr int n = sizeof(Weight) == 8 ? 1 : 2;  // elements in the registers of one float64
  return {sizeof(Weight),
          sizeof(Out),
          kVec<Weight, Out>,
          {
              forward_tier<Weight, Out, 8, 4 * n, true>("sub-warp"),
              forward_tier<Weight, Out, 32, 4 * n, true>("warp"),
              forward_tier<Weight, Out, 32, 8 * n, true>("warp"),
              forward_tier<Weight, Out, 32, 16 * n, true>("warp"),
              forward_tier<Weight, Out, 128, 12 * n, true>("block of 128"),
              forward_tier<Weight, Out, 128, 20 * n, true>("block of 128"),
              forward_tier<Weight, Out, 512, 12 * n, true>("block of 512"),
              forward_tier<Weight, Out, 512, 20 * n, true>("block of 512"),
              forward_tier<Weight, Out, 512, 8 * n, true, false>("re-reading block of 512"),
          },
          {
              forward_tier<Weight, Out, 8, 4 * n, false>("sub-warp"),
              forward_tier<Weight, Out, 32, 4 * n, false>("warp"),
              forward_tier<Weight, Out, 32, 8 * n, false>("warp"),
              forward_tier<Weight, Out, 128, 8 * n, false>("block of 128"),
              forward_tier<Weight, Out, 512, 8 * n, false>("block of 512"),
              forward_tier<Weight, Out, 512, 8 * n, false, false>("re-reading block of 512"),
          }};
}

constexpr Tiers<Forward> kForwardTiers[kTypesCount] = {
    forward_tiers<double, double>(),
    forward_tiers<float, float>(),
    forward_tiers<__half, __half>(),
    forward_tiers<__nv_bfloat16, __nv_bfloat16>(),
    forward_tiers<float, __half>(),
    forward_tiers<float, __nv_bfloat16>(),
};

}  // namespace ws
