#pragma once

#include "../channel.h"
#include "launch.h"
#include "rows.cuh"
#include "team.cuh"

namespace ws {

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident>
__global__ void __launch_bounds__(block_threads(kTeam))
    backward_kernel(const __grid_constant__ Backward args) {
  using A = Accumulator<Weight>;
  using Index = std::conditional_t<kResident, int32_t, int64_t>;
  constexpr int kGroup = kVector ? kVec<Weight, Out> : 1;
  constexpr Index kTile = kTeam * kElements;

  Team<kTeam> team;
  const int64_t row = team.row();
  if (row >= args.shape.rows) return;
  const Row<const Weight, Index> weight(static_cast<const Weight*>(args.weight), row, args.shape,
                                        args.weight_strides);
  const Row<const Out, Index> grad(static_cast<const Out*>(args.grad), row, args.shape,
                                   args.grad_strides);
  const Row<Weight, Index> grad_weight(static_cast<Weight*>(args.grad_weight), row, args.shape,
                                       args.grad_weight_strides);
  const auto cols = static_cast<Index>(args.shape.cols);
  const Columns<kTeam, kGroup, Index> columns(team.thread, cols);
  const Index end = kResident ? 1 : cols;  // a resident row is one tile
  const bool center = args.formula.center;

  A w[kElements], g[kElements];
  if (kResident) {
    read<true>(weight, columns, Index(0), w);
    read<true>(grad, columns, Index(0), g);
  }

  // pass 1
  A m = 0, r = 0, mg = 0, rg = 0;
  A sum[2] = {0, 0};
  if (center || args.grad_shift) {
    A pivot;
    load<1, false>(weight.data, &pivot);
    for (Index tile = 0; tile < end; tile += kTile) {
      if (!kResident) {
        read<false>(weight, columns, tile, w);
        read<false>(grad, columns, tile, g);
      }
      A part[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (columns.has(tile, i)) {
          part[0] += w[i] - pivot;
          part[1] += g[i];
        }
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) sum[k] += part[k];
    }
    team.sum(sum);
    if (center) {
      m = pivot + sum[0] / cols;
      mg = sum[1] / cols;
    }
  }

  // pass 2
  A sums[4] = {0, 0, 0, 0};
  for (Index tile = 0; tile < end; tile += kTile) {
    if (!kResident) {
      read<false>(weight, columns, tile, w);
      read<false>(grad, columns, tile, g);
    }
    A part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (columns.has(tile, i)) {
        const A dw = w[i] - m, dg = g[i] - mg;
        part[0] += dw;
        part[1] += dw * dw;
        part[2] += dg;
        part[3] += dg * dw;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) sums[k] += part[k];
  }
  team.sum(sums);
  if (center) {
    r = sums[0] / cols;
    rg = sums[2] / cols;
  }
  const A var = variance_of(sums[1], r, args.shape.cols, args.formula);
  const A dot = sums[3] - cols * r * rg;
  const Channel<A> channel = channel_of(var, args.formula);
  A factor_g = channel.s;
  A factor_w = slope_of(channel, dot, args.shape.cols, args.formula);
  if (args.gain) {
    const A gain = widen(static_cast<const Weight*>(args.gain)[row]);
    factor_g *= gain;
    factor_w *= gain;
  }
  if (team.thread == 0) {
    const A grad_gain = channel.s * dot;
    if (args.grad_gain) store<1>(static_cast<Weight*>(args.grad_gain) + row, &grad_gain);
    if (args.grad_shift) store<1>(static_cast<Weight*>(args.grad_shift) + row, &sum[1]);
  }

  // pass 3
  for (Index tile = 0; tile < end; tile += kTile) {
    if (!kResident) {
      read<false>(weight, columns, tile, w);
      read<false>(grad, columns, tile, g);
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      w[i] = ((g[i] - mg) - rg) * factor_g + ((w[i] - m) - r) * factor_w;
    }
    write(grad_weight, columns, tile, w);
  }
}

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident = true>
constexpr Tier<Backward> backward_tier(const char* name) {
  return {name, kResident ? kTeam * kElements : INT64_MAX, kTeam, kElements,
          backward_kernel<Weight, Out, kTeam, kElements, kVector, kResident>};
}

template <class Weight, class Out>
constexpr Tiers<Backward> backward_tiers() {
  constexpr int n = sizeof(Weight) == 8 ? 1 : 2;  // elements in the registers of one float64
  return {sizeof(Weight),
          sizeof(Out),
          kVec<Weight, Out>,
          {
              backward_tier<Weight, Out, 8, 4 * n, true>("sub-warp"),
              backward_tier<Weight, Out, 32, 4 * n, true>("warp"),
              backward_tier<Weight, Out, 32, 8 * n, true>("warp"),
              backward_tier<Weight, Out, 32, 16 * n, true>("warp"),
              backward_tier<Weight, Out, 128, 12 * n, true>("block of 128"),
              backward_tier<Weight, Out, 128, 20 * n, true>("block of 128"),
              backward_tier<Weight, Out, 512, 12 * n, true>("block of 512"),
              backward_tier<Weight, Out, 512, 16 * n, true>("block of 512"),
              backward_tier<Weight, Out, 512, 8 * n, true, false>("re-reading block of 512"),
          },
          {
              backward_tier<Weight, Out, 8, 4 * n, false>("sub-warp"),
              backward_tier<Weight, Out, 32, 4 * n, false>("warp"),
              backward_tier<Weight, Out, 32, 8 * n, false>("warp"),
              backward_tier<Weight, Out, 128, 8 * n, false>("block of 128"),
              backward_tier<Weight, Out, 512, 8 * n, false>("block of 512"),
              backward_tier<Weight, Out, 512, 8 * n, false, false>("re-reading block of 512"),
          }};
}

constexpr Tiers<Backward> kBackwardTiers[kTypesCount] = {
    backward_tiers<double, double>(),
    backward_tiers<float, float>(),
    backward_tiers<__half, __half>(),
    backward_tiers<__nv_bfloat16, __nv_bfloat16>(),
    backward_tiers<float, __half>(),
    backward_tiers<float, __nv_bfloat16>(),
};

}  // namespace ws
