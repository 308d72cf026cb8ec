// The kernels, in one form for all passes: read a row's inputs, find its moments, write its results.
//
// A row that fits its team's registers is read from memory once and written once; one that is split
// over blocks is read again, from the cache if it can be.
//
// A pass (passes/) is a struct of what differs:
//
//   Args, Weight, Out, A                     its arguments (standardize.h), the tensors' element types,
//                                            and the type that it computes in
//   kWide, kTeamRows                         of its launch table (launch/tiers.h)
//   kBlocks                                  of 128 threads, that a multiprocessor has to hold
//   needs_sum(args)                          whether sum_g is wanted without center too
//   factors(moments, args, row, writes)      the scalars of a row; with `writes`, this thread is to
//                                            store what the pass writes of them
//   apply(factors, x, ...)                   x, ...: one column's element of each input; result n of
//                                            that column replaces input n
#pragma once

#include "launch/batch.h"
#include "launch/launch.h"
#include "launch/tiers.h"
#include "rows/moments.cuh"
#include "rows/stretch.cuh"

namespace ws {

// Calls run(std::integral_constant<int, n>()) for n = 0 to kCount - 1.
template <int kCount, int n = 0, class Run>
__device__ __forceinline__ void unroll(const Run& run) {
  if constexpr (n < kCount) {
    run(std::integral_constant<int, n>());
    unroll<kCount, n + 1>(run);
  }
}

// What an operand's elements are: const, of an input.
template <class Pass, int kOperand>
using ElementOf =
    std::conditional_t<Pass::Args::kOfOut[kOperand], typename Pass::Out, typename Pass::Weight>;
template <class Pass, int n>
using InputOf = const ElementOf<Pass, Pass::Args::kResults + n>;
template <class Pass, int n>
using ResultOf = ElementOf<Pass, n>;

template <class Pass, class Index, int n>
__device__ __forceinline__ Row<InputOf<Pass, n>, Index> input_row(const typename Pass::Args& args,
                                                                  int64_t row) {
  const Operand& input = args.operands[Pass::Args::kResults + n];
  return {input.data, row, args.shape, input.strides};
}

template <class Pass, class Index, int n>
__device__ __forceinline__ Row<ResultOf<Pass, n>, Index> result_row(const typename Pass::Args& args,
                                                                    int64_t row) {
  return {args.operands[n].data, row, args.shape, args.operands[n].strides};
}

// Calls run(x) with room for every input's elements in registers: x[n][k][i]. An array for each input,
// because nvcc keeps one array of them all in memory, for 10.0 and later.
template <int kCount, class A, int kRows, int kElements, class Run, class... Inputs>
__device__ __forceinline__ void with_registers(const Run& run, Inputs&... inputs) {
  if constexpr (sizeof...(Inputs) < kCount) {
    A next[kRows][kElements];
    with_registers<kCount, A, kRows, kElements>(run, inputs..., next);
  } else {
    A(*const x[kCount])[kElements] = {inputs...};
    run(x);
  }
}

// The k-th of the rows that a team holds.
template <class Pass, class A, int kCount, int kElements, int... n>
__device__ __forceinline__ void apply(const typename Pass::Factors& by,
                                      A (*const (&x)[kCount])[kElements], int k,
                                      std::integer_sequence<int, n...>) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) Pass::apply(by, x[n][k][i]...);
}

// The rows of one team, of which the first is number `row`: kRows of them, or `count` where fewer are
// left. from(n, k) is input n of the k-th, and to(n, k) its result n.
template <class Pass, int kTeam, int kElements, int kRows, int kGroup, bool kGlobal, class From,
          class To>
__device__ __forceinline__ void work_on_rows(const typename Pass::Args& args, Team<kTeam>& team,
                                             int64_t row, int64_t count, From from, To to) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr std::integral_constant<int, 0> kFirst;
  const auto cols = static_cast<int32_t>(args.shape.cols);
  Columns<kTeam, kGroup, int32_t> columns[kRows];
  A pivot[kRows];
  with_registers<kInputs<Args>, A, kRows, kElements>([&](auto& x) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      columns[k] = {team.thread * kGroup, k < count ? cols : 0};
      unroll<kInputs<Args>>([&](auto n) { read<kGlobal>(from(n, k), columns[k], 0, x[n][k]); });
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) pivot[k] = k < count ? widen(from(kFirst, k).data[0]) : A(0);
    Moments<A> moments[kRows];
    find_moments(team, x, columns, 0, pivot, static_cast<A>(cols), args.formula.center,
                 Pass::needs_sum(args), moments);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (k >= count) break;
      const auto by = Pass::factors(moments[k], args, row + k, team.thread == 0);
      apply<Pass>(by, x, k, std::make_integer_sequence<int, kInputs<Args>>());
      unroll<Args::kResults>([&](auto n) { write<kGlobal>(to(n, k), columns[k], 0, x[n][k]); });
    }
  });
}

// Block number `block` of an entry.
template <class Pass, int kTier>
__device__ __forceinline__ void work_on_block(const Entry<typename Pass::Args>& entry,
                                              uint32_t block) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kVec = Tiers<Pass>::kVec;
  constexpr int kGroup = tier.access == Access::kVector ? kVec : 1;
  const Args& args = entry.args;
  Team<tier.team> team;
  const int64_t first = static_cast<int64_t>(block) * entry.rows;
  if constexpr (tier.access == Access::kFlat) {
    const int64_t left = args.shape.rows - first;
    const int rows = static_cast<int>(left < entry.rows ? left : entry.rows);
    const int cols = static_cast<int>(args.shape.cols);
    A* tiles[kInputs<Args>];  // each input's first element, in shared memory
    int phases[kInputs<Args>];
    unroll<kInputs<Args>>([&](auto n) {
      const auto row = input_row<Pass, int32_t, n()>(args, first);
      const Stretch<InputOf<Pass, n()>, A, kVec> input(row.data, rows * cols);
      A* const tile = shared_tile<A, kTile<A> + kVec, n()>();
      input.template load_to<kTile<A>>(tile);
      tiles[n] = tile + input.phase;
      phases[n] = input.phase;
    });
    __syncthreads();
    for (int i = team.index; i < rows; i += tier.threads() / tier.team) {
      const auto at = [&](auto n, int) { return Row<A, int32_t>(tiles[n] + i * cols); };
      work_on_rows<Pass, tier.team, tier.elements, tier.team_rows, kGroup, false>(
          args, team, first + i, 1, at, at);
    }
    __syncthreads();
    unroll<Args::kResults>([&](auto n) {
      const auto row = result_row<Pass, int32_t, n()>(args, first);
      const Stretch<ResultOf<Pass, n()>, A, kVec> result(row.data, rows * cols);
      result.template store_from<kTile<A>>(tiles[n], phases[n] == result.phase);
    });
  } else {
    const int64_t row = first + team.index * tier.team_rows;
    if (row >= args.shape.rows) return;
    work_on_rows<Pass, tier.team, tier.elements, tier.team_rows, kGroup, true>(
        args, team, row, args.shape.rows - row,
        [&](auto n, int k) { return input_row<Pass, int32_t, n()>(args, row + k); },
        [&](auto n, int k) { return result_row<Pass, int32_t, n()>(args, row + k); });
  }
}

template <class Pass, int kThreads, int kBytes>
__global__ void __launch_bounds__(kThreads, kThreads == 128 ? Pass::kBlocks : 1)
    batch_kernel(const __grid_constant__ Batch<typename Pass::Args, kBytes> batch) {
  const int i = batch.entry_of(blockIdx.x);
  const uint32_t block = blockIdx.x - batch.first_block[i];
  with_tier<Tiers<Pass>, kThreads>(batch.entries[i].tier, [&](auto tier) {
    work_on_block<Pass, tier()>(batch.entries[i], block);
  });
}

// Split rows: the moments of every chunk of a row, then the row's from those, and the results.
template <class Pass, int kTier, bool kApply>
__global__ void __launch_bounds__(512, 1)
    split_kernel(const __grid_constant__ Split<typename Pass::Args> split) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? Tiers<Pass>::kVec : 1;
  constexpr int64_t kStep = tier.team * tier.elements;
  const Args& args = split.args;
  Team<tier.team> team;
  const int64_t row = split.row(), begin = split.begin(), end = split.end();
  const Columns<tier.team, kGroup, int64_t> columns[1] = {{team.thread * kGroup, end}};
  auto* const parts = static_cast<Moments<A>*>(split.moments);
  with_registers<kInputs<Args>, A, 1, tier.elements>([&](auto& x) {
    const auto read_inputs = [&](int64_t tile) {
      unroll<kInputs<Args>>([&](auto n) {
        read<kApply>(input_row<Pass, int64_t, n()>(args, row), columns[0], tile, x[n][0]);
      });
    };
    if constexpr (kApply) {
      const Moments<A> moments =
          combine(team, parts + row * split.chunks, split.chunks, static_cast<A>(args.shape.cols),
                  [&](int chunk) { return split.cols_of(chunk); });
      const auto by = Pass::factors(moments, args, row, begin == 0 && team.thread == 0);
      for (int64_t tile = begin; tile < end; tile += kStep) {
        read_inputs(tile);
        apply<Pass>(by, x, 0, std::make_integer_sequence<int, kInputs<Args>>());
        unroll<Args::kResults>([&](auto n) {
          write<true>(result_row<Pass, int64_t, n()>(args, row), columns[0], tile, x[n][0]);
        });
      }
    } else {
      const A pivot[1] = {widen(input_row<Pass, int64_t, 0>(args, row).data[0])};
      Moments<A> moments;
      for (int64_t tile = begin; tile < end; tile += kStep) {
        read_inputs(tile);
        const A n = static_cast<A>(end - tile < kStep ? end - tile : kStep);
        Moments<A> part[1];
        find_moments(team, x, columns, tile, pivot, n, args.formula.center, Pass::needs_sum(args),
                     part);
        if (tile == begin) {
          moments = part[0];
        } else {
          merge(moments, static_cast<A>(tile - begin), part[0], n);
        }
      }
      if (team.thread == 0) parts[blockIdx.x] = moments;
    }
  });
}

template <class Pass>
constexpr Kernels<typename Pass::Args> kernels() {
  using Table = Tiers<Pass>;
  constexpr int kSplit = split_tier<Table>(Access::kVector);
  constexpr int kScalarSplit = split_tier<Table>(Access::kScalar);
  return {Table::kVec,
          Table::list,
          tier_of<Table>,
          sizeof(Moments<typename Pass::A>),
          batch_kernel<Pass, 128, kSmallBytes>,
          batch_kernel<Pass, 128, kLargeBytes>,
          batch_kernel<Pass, 512, kSmallBytes>,
          {split_kernel<Pass, kSplit, false>, split_kernel<Pass, kScalarSplit, false>},
          {split_kernel<Pass, kSplit, true>, split_kernel<Pass, kScalarSplit, true>}};
}

template <template <class, class> class Pass>
constexpr Kernels<typename Pass<float, float>::Args> kKernels[kTypesCount] = {
    kernels<Pass<double, double>>(), kernels<Pass<float, float>>(),
    kernels<Pass<__half, __half>>(), kernels<Pass<__nv_bfloat16, __nv_bfloat16>>(),
    kernels<Pass<float, __half>>(),  kernels<Pass<float, __nv_bfloat16>>(),
};

}  // namespace ws
