// The forward kernels and their launch table. The mathematics: csrc/standardize.h.
//
// One team of threads a row (team.cuh). A row that fits the team's registers is read from memory
// once and written once; a longer one is read again, from the caches if it can be, in each pass:
//
//   1  m = pivot + sum(w - pivot) / cols
//   2  r = sum(w - m) / cols            so that m + r is the mean: kept as two numbers, whose sum
//      var from sum((w - m)^2) and r    would lose the digits of a small r
//   3  out; r and shift enter it as one offset
//
// The pivot is the row's first element. It makes the mean of a constant row exactly its value, so
// that w - m, r and var are 0. With center = false, m and r are 0 and there is no pass 1.
#pragma once

#include "../channel.h"
#include "launch.h"
#include "rows.cuh"
#include "team.cuh"

namespace ws {

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident>
__global__ void __launch_bounds__(block_threads(kTeam), kMinBlocks)
    forward_kernel(const __grid_constant__ Forward args) {
  using A = Accumulator<Weight>;
  using Index = std::conditional_t<kResident, int32_t, int64_t>;
  constexpr int kGroup = kVector ? kVec<Weight, Out> : 1;
  constexpr Index kTile = kTeam * kElements;

  const Team<kTeam> team;
  const int64_t row = team.row();
  if (row >= args.shape.rows) return;
  const Row<const Weight, Index> weight(args.weight, row, args.shape, args.weight_strides);
  const Row<Out, Index> out(args.out, row, args.shape, args.out_strides);
  const auto cols = static_cast<Index>(args.shape.cols);
  const Columns<kTeam, kGroup, Index> columns{team.thread * kGroup, cols};
  const Index end = kResident ? 1 : cols;  // a resident row is one tile
  const bool center = args.formula.center;

  A w[kElements];
  if constexpr (kResident) read<true>(weight, columns, Index(0), w);

  A m = 0;
  if (center) {
    const A pivot = widen(weight.data[0]);
    A total[1] = {0};
    for (Index tile = 0; tile < end; tile += kTile) {
      if constexpr (!kResident) read<false>(weight, columns, tile, w);
      A part[1] = {0};
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (columns.has(tile, i)) part[0] += w[i] - pivot;
      }
      add(total, part);
    }
    team.sum(total);
    m = pivot + total[0] / cols;
  }

  A totals[2] = {0, 0};
  for (Index tile = 0; tile < end; tile += kTile) {
    if constexpr (!kResident) read<false>(weight, columns, tile, w);
    A part[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (columns.has(tile, i)) {
        const A dw = w[i] - m;
        part[0] += dw;
        part[1] += dw * dw;
      }
    }
    add(totals, part);
  }
  team.sum(totals);
  const A r = center ? totals[0] / cols : A(0);
  const A var = variance_of(totals[1], r, args.shape.cols, args.formula);
  A factor = channel_of(var, args.formula).s;
  if (args.gain) factor *= widen(static_cast<const Weight*>(args.gain)[row]);
  A offset = -r * factor;
  if (args.shift) offset += widen(static_cast<const Weight*>(args.shift)[row]);

  for (Index tile = 0; tile < end; tile += kTile) {
    if constexpr (!kResident) read<false>(weight, columns, tile, w);
#pragma unroll
    for (int i = 0; i < kElements; ++i) w[i] = (w[i] - m) * factor + offset;
    write(out, columns, tile, w);
  }
}

template <class Weight, class Out, int kTeam, int kElements, bool kVector, bool kResident = true>
constexpr Tier<Forward> forward_tier(const char* name) {
  return {name, kResident ? kTeam * kElements : INT64_MAX, kTeam, kElements,
          forward_kernel<Weight, Out, kTeam, kElements, kVector, kResident>};
}

// Team, elements a thread. A warp needs no barrier, so it goes as far as 32 elements a thread do;
// shorter rows share one, so that no thread is without columns. Beyond 40 elements a thread, blocks
// are larger instead, and rows that a block of 512 does not hold are read again.
template <class Weight, class Out>
constexpr Tiers<Forward> forward_tiers() {
  constexpr int n = sizeof(Weight) == 8 ? 1 : 2;  // a float64 takes the registers of two others
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
              forward_tier<Weight, Out, 512, 8 * n, true, false>("re-reading block"),
          },
          {
              forward_tier<Weight, Out, 8, 4 * n, false>("sub-warp"),
              forward_tier<Weight, Out, 32, 4 * n, false>("warp"),
              forward_tier<Weight, Out, 32, 8 * n, false>("warp"),
              forward_tier<Weight, Out, 128, 8 * n, false>("block of 128"),
              forward_tier<Weight, Out, 512, 8 * n, false>("block of 512"),
              forward_tier<Weight, Out, 512, 4 * n, false, false>("re-reading block"),
          }};
}

constexpr Tiers<Forward> kForwardTiers[kTypesCount] = {
    forward_tiers<double, double>(), forward_tiers<float, float>(),
    forward_tiers<__half, __half>(), forward_tiers<__nv_bfloat16, __nv_bfloat16>(),
    forward_tiers<float, __half>(),  forward_tiers<float, __nv_bfloat16>(),
};

inline Plan forward_plan(const Forward& args, Types types) {
  const Tiers<Forward>& tiers = kForwardTiers[types];
  const auto vectors = [&](const void* data, int bytes, const Strides& strides) {
    return allows_vectors(data, bytes, tiers.vec, args.shape, strides);
  };
  return plan_of(tiers, args.shape,
                 vectors(args.weight, tiers.weight_bytes, args.weight_strides) &&
                     vectors(args.out, tiers.out_bytes, args.out_strides));
}

}  // namespace ws
