// Rows that several blocks share: those of a cluster, which read a row once, or any number of blocks in
// launches that all read it.
#pragma once

#include "rows/cluster.cuh"
#include "work_on_rows.cuh"

namespace ws {

// Rows that a cluster of blocks shares.
template <class Pass, int kTier>
__global__ void __launch_bounds__(256, Pass::kResident / 256)
    cluster_kernel(const __grid_constant__ Split<typename Pass::Args> split) {
#ifdef WS_CLUSTERS
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  if constexpr (kInPlace<Pass>) {
    if (!begin_step<typename Pass::A>(split.args.rule)) return;
  }
  const auto where = [&] {
    return Place<typename Pass::Args>{split.args, split.types, split.row()};
  };
  ClusterTeam<tier.team> team;
  work_on_rows<Pass, tier.elements, 1, Tiers<Pass>::kVec, true>(
      where, team, 1, static_cast<int32_t>(split.begin()), static_cast<int32_t>(split.end()),
      [&](auto n, int) { return input_row<Pass, int32_t, n()>(where()); },
      [&](int) { return operand_row<Pass, int32_t, 0>(where()); }, InputsOf<Pass>());
  team.wait();
#endif
}

// A block's part of a split row, tile by tile. The next tile's loads are under way while this one is
// worked on, and the first one's while the moments are combined; not where a step needs the registers.
template <class Pass, int kTier, Stage kStage, int... n>
__device__ __forceinline__ void work_on_chunk(const Split<typename Pass::Args>& split,
                                              std::integer_sequence<int, n...>) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? Tiers<Pass>::kVec : 1;
  constexpr int64_t kStep = tier.team * tier.elements;
  constexpr bool kAhead = kStage != Stage::kUpdate;
  const Args& args = split.args;
  if constexpr (kInPlace<Pass>) {
    if (!begin_step<A>(args.rule)) return;
  }
  Team<tier.team> team;
  const int64_t begin = split.begin(), end = split.end();
  const Place<Args> place{args, split.types, split.row()};
  const int64_t row = place.row;
  const Columns<tier.team, kGroup, int64_t> columns = {team.thread * kGroup, end};
  auto* const parts = static_cast<Moments<A>*>(split.moments);
  const auto read_input = [&](auto input, int64_t tile) {
    Words<ElementOf<Pass, kInput<Pass, input()>>, 1, tier.elements, kGroup> loaded;
    read_row<kStage != Stage::kMoments>(input_row<Pass, int64_t, input()>(place), columns, tile,
                                        loaded, 0);
    return loaded;
  };
  const auto find_factors = [&] {
    const auto vectors = Pass::load(args, row);
    const Moments<A> moments =
        combine(team, parts + row * split.chunks, split.chunks, static_cast<A>(args.shape.cols),
                [&](int chunk) { return split.cols_of(chunk); });
    return Pass::factors(moments, vectors, args, row, begin == 0 && team.thread == 0);
  };
  const auto work = [&](auto... loaded) {
    Moments<A> moments;
    [[maybe_unused]] typename Pass::Factors by;
    [[maybe_unused]] A pivot[Pass::kHeld][1];
    if constexpr (kStage == Stage::kMoments) {
      unroll<Pass::kHeld>([&](auto input) {
        pivot[input][0] = first_of<A>(input_row<Pass, int64_t, input()>(place));
      });
    } else {
      by = find_factors();
    }
    const auto work_on_tile = [&](int64_t tile, auto&&... inputs) {
      A(*const x[])[tier.elements] = {inputs.elements...};
      if constexpr (kAhead)
        ((loaded = read_input(std::integral_constant<int, n>(), tile + kStep)), ...);
      if constexpr (kStage != Stage::kMoments) {
#pragma unroll
        for (int i = 0; i < tier.elements; ++i) Pass::apply(by, inputs.elements[0][i]...);
      }
      if constexpr (kStage == Stage::kApply) {
        write_row<true>(operand_row<Pass, int64_t, 0>(place), columns, tile, x[0][0]);
      } else if constexpr (kStage == Stage::kUpdate) {
        const auto where = [&] { return Place<Args>{split.args, split.types, split.row()}; };
        step_row<Pass>(where, columns, tile, inputs.elements[0]...);
      } else {
        const A cols = static_cast<A>(end - tile < kStep ? end - tile : kStep);
        Moments<A> part[1];
        find_moments<Pass::kSquaresG>(team, x, columns, tile, pivot, cols, args.formula.center,
                                      part);
        if (tile == begin) {
          moments = part[0];
        } else {
          merge(moments, static_cast<A>(tile - begin), part[0], cols);
        }
      }
    };
    for (int64_t tile = begin; tile < end; tile += kStep) {
      if constexpr (kAhead) {
        work_on_tile(tile, Elements<A, 1, tier.elements>(loaded)...);
      } else {
        work_on_tile(tile, Elements<A, 1, tier.elements>(
                               read_input(std::integral_constant<int, n>(), tile))...);
      }
    }
    if (kStage == Stage::kMoments && team.thread == 0) parts[blockIdx.x] = moments;
  };
  if constexpr (kStage == Stage::kApply && Args::kFirstInput == 0) {
    if (begin == 0) find_factors();
  } else if constexpr (!kAhead) {
    work();
  } else {
    work(read_input(std::integral_constant<int, n>(), begin)...);
  }
}

// Split rows: the moments of every chunk of a row, then the row's from those, and the results. Of an update
// that is the step; the forward pass follows, on what the rows have become.
template <class Pass, int kTier, Stage kStage>
__global__ void __launch_bounds__(256, Pass::kResident / 256)
    split_kernel(const __grid_constant__ Split<typename Pass::Args> split) {
  work_on_chunk<Pass, kTier, kStage>(split, InputsOf<Pass>());
}

}  // namespace ws
