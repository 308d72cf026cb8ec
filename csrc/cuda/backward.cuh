// The backward kernels and their launch table. The mathematics: csrc/standardize.h.
//
// One team of threads a row (team.cuh), its w and g = grad in registers where they fit:
//
//   1  m = pivot + sum(w - pivot) / cols          mg = sum(g) / cols
//   2  r = sum(w - m) / cols                      rg = sum(g - mg) / cols
//      var from sum((w - m)^2) and r              dot = sum((w - m)(g - mg)) - cols r rg
//   3  grad_weight; r and rg enter it as one offset
//
// Otherwise as in forward.cuh. With center = false, m, mg, r and rg are 0, and pass 1 only serves
// grad_shift = sum(g).
#pragma once

#include "../channel.h"
#include "launch.h"
#include "rows.cuh"
#include "team.cuh"

namespace ws {

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident>
__global__ void __launch_bounds__(block_threads(kTeam), kMinBlocks)
    backward_kernel(const __grid_constant__ Backward args) {
  using A = Accumulator<Weight>;
  using Index = std::conditional_t<kResident, int32_t, int64_t>;
  constexpr int kGroup = kVector ? kVec<Weight, Out> : 1;
  constexpr Index kTile = kTeam * kElements;

  const Team<kTeam> team;
  const int64_t row = team.row();
  if (row >= args.shape.rows) return;
  const Row<const Weight, Index> weight(args.weight, row, args.shape, args.weight_strides);
  const Row<const Out, Index> grad(args.grad, row, args.shape, args.grad_strides);
  const Row<Weight, Index> grad_weight(args.grad_weight, row, args.shape, args.grad_weight_strides);
  const auto cols = static_cast<Index>(args.shape.cols);
  const Columns<kTeam, kGroup, Index> columns{team.thread * kGroup, cols};
  const Index end = kResident ? 1 : cols;  // a resident row is one tile
  const bool center = args.formula.center;

  A w[kElements], g[kElements];
  if constexpr (kResident) {
    read<true>(weight, columns, Index(0), w);
    read<true>(grad, columns, Index(0), g);
  }

  A m = 0, mg = 0, sum_g = 0;
  if (center || args.grad_shift) {
    const A pivot = widen(weight.data[0]);
    A total[2] = {0, 0};
    for (Index tile = 0; tile < end; tile += kTile) {
      if constexpr (!kResident) {
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
      add(total, part);
    }
    team.sum(total);
    sum_g = total[1];
    if (center) {
      m = pivot + total[0] / cols;
      mg = sum_g / cols;
    }
  }

  A totals[4] = {0, 0, 0, 0};
  for (Index tile = 0; tile < end; tile += kTile) {
    if constexpr (!kResident) {
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
    add(totals, part);
  }
  team.sum(totals);
  const A r = center ? totals[0] / cols : A(0);
  const A rg = center ? totals[2] / cols : A(0);
  const A var = variance_of(totals[1], r, args.shape.cols, args.formula);
  const A dot = totals[3] - cols * r * rg;
  const Channel<A> channel = channel_of(var, args.formula);
  const A gain = args.gain ? widen(static_cast<const Weight*>(args.gain)[row]) : A(1);
  const A factor_g = channel.s * gain;
  const A factor_w = slope_of(channel, dot, args.shape.cols, args.formula) * gain;
  const A offset = -(rg * factor_g + r * factor_w);
  if (team.thread == 0) {
    const A grad_gain = channel.s * dot;
    if (args.grad_gain) store<1>(static_cast<Weight*>(args.grad_gain) + row, &grad_gain);
    if (args.grad_shift) store<1>(static_cast<Weight*>(args.grad_shift) + row, &sum_g);
  }

  for (Index tile = 0; tile < end; tile += kTile) {
    if constexpr (!kResident) {
      read<false>(weight, columns, tile, w);
      read<false>(grad, columns, tile, g);
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      w[i] = (g[i] - mg) * factor_g + ((w[i] - m) * factor_w + offset);
    }
    write(grad_weight, columns, tile, w);
  }
}

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident = true>
constexpr Tier<Backward> backward_tier(const char* name) {
  return {name, kResident ? kTeam * kElements : INT64_MAX, kTeam, kElements,
          backward_kernel<Weight, Out, kTeam, kElements, kVector, kResident>};
}

// As in forward.cuh, but the longest resident row is shorter: w and g take twice the registers, of
// which a thread of a block of 512 has 128.
template <class Weight, class Out>
constexpr Tiers<Backward> backward_tiers() {
  constexpr int n = sizeof(Weight) == 8 ? 1 : 2;  // a float64 takes the registers of two others
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
              backward_tier<Weight, Out, 512, 8 * n, true, false>("re-reading block"),
          },
          {
              backward_tier<Weight, Out, 8, 4 * n, false>("sub-warp"),
              backward_tier<Weight, Out, 32, 4 * n, false>("warp"),
              backward_tier<Weight, Out, 32, 8 * n, false>("warp"),
              backward_tier<Weight, Out, 128, 8 * n, false>("block of 128"),
              backward_tier<Weight, Out, 512, 8 * n, false>("block of 512"),
              backward_tier<Weight, Out, 512, 4 * n, false, false>("re-reading block"),
          }};
}

constexpr Tiers<Backward> kBackwardTiers[kTypesCount] = {
    backward_tiers<double, double>(), backward_tiers<float, float>(),
    backward_tiers<__half, __half>(), backward_tiers<__nv_bfloat16, __nv_bfloat16>(),
    backward_tiers<float, __half>(),  backward_tiers<float, __nv_bfloat16>(),
};

inline Plan backward_plan(const Backward& args, Types types) {
  const Tiers<Backward>& tiers = kBackwardTiers[types];
  const auto vectors = [&](const void* data, int bytes, const Strides& strides) {
    return allows_vectors(data, bytes, tiers.vec, args.shape, strides);
  };
  return plan_of(tiers, args.shape,
                 vectors(args.grad, tiers.out_bytes, args.grad_strides) &&
                     vectors(args.weight, tiers.weight_bytes, args.weight_strides) &&
                     vectors(args.grad_weight, tiers.weight_bytes, args.grad_weight_strides));
}

}  // namespace ws
