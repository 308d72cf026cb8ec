// Rows that several blocks share: those of a cluster, which read a row once, or any number of blocks in
// two launches that both read it.
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
  const int64_t row = split.row();
  ClusterTeam<tier.team> team;
  work_on_rows<Pass, tier.elements, 1, Tiers<Pass>::kVec, true>(
      split.args, team, row, 1, static_cast<int32_t>(split.begin()),
      static_cast<int32_t>(split.end()),
      [&](auto n, int) { return input_row<Pass, int32_t, n()>(split.args, row); },
      [&](auto n, int) { return result_row<Pass, int32_t, n()>(split.args, row); },
      InputsOf<Pass>());
  team.wait();
#endif
}

// A block's part of a split row, tile by tile. The next tile's loads are under way while this one is
// worked on, and the first one's while the moments are combined.
template <class Pass, int kTier, bool kApply, int... n>
__device__ __forceinline__ void work_on_chunk(const Split<typename Pass::Args>& split,
                                              std::integer_sequence<int, n...>) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? Tiers<Pass>::kVec : 1;
  constexpr int64_t kStep = tier.team * tier.elements;
  const Args& args = split.args;
  Team<tier.team> team;
  const int64_t row = split.row(), begin = split.begin(), end = split.end();
  const Columns<tier.team, kGroup, int64_t> columns = {team.thread * kGroup, end};
  auto* const parts = static_cast<Moments<A>*>(split.moments);
  const auto read_input = [&](auto input, int64_t tile) {
    Words<InputOf<Pass, input()>, 1, tier.elements, kGroup> loaded;
    read<kApply>(input_row<Pass, int64_t, input()>(args, row), columns, tile, loaded.words[0]);
    return loaded;
  };
  const auto work = [&](auto... loaded) {
    Moments<A> moments;
    [[maybe_unused]] typename Pass::Factors by;
    [[maybe_unused]] A pivot[kInputs<Args>][1];
    if constexpr (kApply) {
      const auto vectors = Pass::load(args, row);
      moments =
          combine(team, parts + row * split.chunks, split.chunks, static_cast<A>(args.shape.cols),
                  [&](int chunk) { return split.cols_of(chunk); });
      by = Pass::factors(moments, vectors, args, row, begin == 0 && team.thread == 0);
    } else {
      unroll<kInputs<Args>>([&](auto input) {
        pivot[input][0] = widen(input_row<Pass, int64_t, input()>(args, row).data[0]);
      });
    }
    const auto work_on_tile = [&](int64_t tile, auto&&... inputs) {
      A(*const x[])[tier.elements] = {inputs.elements...};
      ((loaded = read_input(std::integral_constant<int, n>(), tile + kStep)), ...);
      if constexpr (kApply) {
#pragma unroll
        for (int i = 0; i < tier.elements; ++i) Pass::apply(by, inputs.elements[0][i]...);
        unroll<Args::kResults>([&](auto result) {
          write<true>(result_row<Pass, int64_t, result()>(args, row), columns, tile, x[result][0]);
        });
      } else {
        const A cols = static_cast<A>(end - tile < kStep ? end - tile : kStep);
        Moments<A> part[1];
        find_moments(team, x, columns, tile, pivot, cols, args.formula.center, part);
        if (tile == begin) {
          moments = part[0];
        } else {
          merge(moments, static_cast<A>(tile - begin), part[0], cols);
        }
      }
    };
    for (int64_t tile = begin; tile < end; tile += kStep)
      work_on_tile(tile, Elements<A, 1, tier.elements>(loaded)...);
    if (!kApply && team.thread == 0) parts[blockIdx.x] = moments;
  };
  work(read_input(std::integral_constant<int, n>(), begin)...);
}

// Split rows: the moments of every chunk of a row, then the row's from those, and the results.
template <class Pass, int kTier, bool kApply>
__global__ void __launch_bounds__(256, Pass::kResident / 256)
    split_kernel(const __grid_constant__ Split<typename Pass::Args> split) {
  work_on_chunk<Pass, kTier, kApply>(split, InputsOf<Pass>());
}

}  // namespace ws
