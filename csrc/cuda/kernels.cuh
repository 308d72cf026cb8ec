// The kernels, in one form for all passes: read a row's inputs, find its moments, write its results.
//
// A row that the registers of its team or its cluster hold is read from memory once and written once;
// one that is split over blocks is read again, from the cache if it can be.
//
// A pass (passes/) is a struct of what differs:
//
//   Args, Weight, Out, A                     its arguments (standardize.h), the tensors' element types,
//                                            and the type that it computes in
//   kResident                                threads that a multiprocessor has to hold at once, which
//                                            limits the registers of each (launch/tiers.h)
//   load(args, row)                          Vectors: a row's element of each vector that it reads
//   factors(moments, vectors, args,          Factors: the scalars of a row; with `writes`, this thread
//           row, writes)                     is to store what the pass writes of them
//   apply(factors, x, ...)                   x, ...: one column's element of each input; result n of
//                                            that column replaces input n
#pragma once

#include "launch/batch.h"
#include "launch/launch.h"
#include "launch/tiers.h"
#include "rows/cluster.cuh"
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
template <class Pass>
using InputsOf = std::make_integer_sequence<int, kInputs<typename Pass::Args>>;

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

// The words that a thread holds of kRows rows of one input. Each input has a struct of its own: nvcc
// keeps an array of all inputs in memory, for 10.0 and later.
template <class T, int kRows, int kElements, int kGroup>
struct Words {
  Word<T, kGroup> words[kRows][kElements / kGroup];
};

// Their elements.
template <class A, int kRows, int kElements>
struct Elements {
  A elements[kRows][kElements];

  template <class T, int kGroup>
  __device__ __forceinline__ explicit Elements(const Words<T, kRows, kElements, kGroup>& from) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int i = 0; i < kElements; i += kGroup)
        unpack<T, kGroup>(from.words[k][i / kGroup], elements[k] + i);
    }
  }
};

// The columns from `begin` to `end` of a team's rows, of which the first is number `row`: kRows of
// them, or `count` where fewer are left. from(n, k) is input n of the k-th, and to(n, k) its result n.
// All loads are under way before the first is waited for: words, then elements, never one of each.
template <class Pass, int kElements, int kRows, int kGroup, bool kGlobal, class Team, class From,
          class To, int... n>
__device__ __forceinline__ void work_on_rows(const typename Pass::Args& args, Team& team,
                                             int64_t row, int32_t count, int32_t begin, int32_t end,
                                             From from, To to, std::integer_sequence<int, n...>) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  const Columns<Team::kThreads, kGroup, int32_t> columns = {team.thread * kGroup, end};
  // In the place of a row that is not there, the first one is worked on again, and not written.
  const auto there = [&](int k) { return k == 0 || k < count ? k : 0; };
  const auto read_input = [&](auto input) {
    Words<typename decltype(from(input, 0))::Element, kRows, kElements, kGroup> loaded;
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      read<kGlobal>(from(input, there(k)), columns, begin, loaded.words[k]);
    return loaded;
  };
  A pivot[kInputs<Args>][kRows];
  typename Pass::Vectors vectors[kRows];
  const auto work = [&](auto&&... inputs) {
    A(*const x[])[kElements] = {inputs.elements...};
    Moments<A> moments[kRows];
    find_moments(team, x, columns, begin, pivot, static_cast<A>(args.shape.cols),
                 args.formula.center, moments);
    if constexpr (!kGlobal) team.sync();  // before pivots are overwritten, which all threads read
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (k > 0 && k >= count) break;
      const bool writes = begin == 0 && team.thread == 0;
      const auto by = Pass::factors(moments[k], vectors[k], args, row + k, writes);
#pragma unroll
      for (int i = 0; i < kElements; ++i) Pass::apply(by, inputs.elements[k][i]...);
      unroll<Args::kResults>(
          [&](auto result) { write<kGlobal>(to(result, k), columns, begin, x[result][k]); });
    }
  };
  const auto unpack_all = [&](const auto&... loaded) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      unroll<kInputs<Args>>(
          [&](auto input) { pivot[input][k] = widen(from(input, there(k)).data[0]); });
      vectors[k] = Pass::load(args, row + there(k));
    }
    work(Elements<A, kRows, kElements>(loaded)...);
  };
  unpack_all(read_input(std::integral_constant<int, n>())...);
}

// The same number, but the compiler does not know that: what is found by it is read again, and not kept
// in registers until then.
__device__ __forceinline__ int again(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The rows of a block of entry number i, which are one stretch of every tensor.
template <class Args>
struct FlatRows {
  const Args& args;
  int64_t first;
  int count, cols;

  template <class Batch>
  __device__ FlatRows(const Batch& batch, int i)
      : args(batch.entries[i].args),
        first(batch.first_row(i)),
        count(static_cast<int>(std::min<int64_t>(args.shape.rows - first, batch.entries[i].rows))),
        cols(static_cast<int>(args.shape.cols)) {}
};

template <class Pass, int kTier, class Batch, int... n>
__device__ __forceinline__ void work_on_flat_block(const Batch& batch, int i,
                                                   std::integer_sequence<int, n...> inputs) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kVec = Tiers<Pass>::kVec;
  // Between the loads, a team's row and the stores, registers are for the row.
  const auto rows_again = [&] { return FlatRows<Args>(batch, again(i)); };
  const auto input = [](auto number, const FlatRows<Args>& rows) {
    const auto row = input_row<Pass, int32_t, number()>(rows.args, rows.first);
    return Stretch<InputOf<Pass, number()>, A, kVec>(row.data, rows.count * rows.cols);
  };
  const auto tile_of = [](auto number) { return shared_tile<A, kTile<A> + kVec, number()>(); };
  int phases[kInputs<Args>];  // where each input begins in its tile
  const auto put = [&](auto number, const auto& stretch, const auto& loaded) {
    stretch.template put<kTile<A>>(loaded, tile_of(number));
    phases[number] = stretch.phase;
  };
  const auto put_all = [&](const FlatRows<Args>& rows, const auto&... loaded) {
    (put(std::integral_constant<int, n>(), input(std::integral_constant<int, n>(), rows), loaded),
     ...);
  };
  {
    const FlatRows<Args> rows(batch, i);
    put_all(rows, input(std::integral_constant<int, n>(), rows).template load_all<kTile<A>>()...);
  }
  __syncthreads();
  Team<tier.team> team;
#pragma unroll 1
  for (int row = team.index;; row += tier.threads() / tier.team) {
    const FlatRows<Args> rows = rows_again();
    if (row >= rows.count) break;
    const auto at = [&](auto number, int) {
      return Row<A, int32_t>(tile_of(number) + phases[number] + row * rows.cols);
    };
    work_on_rows<Pass, tier.elements, 1, 1, false>(rows.args, team, rows.first + row, 1, 0,
                                                   rows.cols, at, at, inputs);
  }
  __syncthreads();
  const FlatRows<Args> rows = rows_again();
  unroll<Args::kResults>([&](auto number) {
    const auto row = result_row<Pass, int32_t, number()>(rows.args, rows.first);
    const Stretch<ResultOf<Pass, number()>, A, kVec> result(row.data, rows.count * rows.cols);
    result.template store_from<kTile<A>>(tile_of(number) + phases[number],
                                         phases[number] == result.phase);
  });
}

// A block of entry number i.
template <class Pass, int kTier, class Batch>
__device__ __forceinline__ void work_on_block(const Batch& batch, int i) {
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr InputsOf<Pass> inputs;
  if constexpr (tier.access == Access::kFlat) {
    work_on_flat_block<Pass, kTier>(batch, i, inputs);
  } else {
    constexpr int kGroup = tier.access == Access::kVector ? Tiers<Pass>::kVec : 1;
    const auto& args = batch.entries[i].args;
    Team<tier.team> team;
    const int64_t row = batch.first_row(i) + team.index * tier.team_rows;
    const int64_t left = args.shape.rows - row;
    if (left <= 0) return;
    const int count = static_cast<int>(std::min<int64_t>(left, tier.team_rows));
    work_on_rows<Pass, tier.elements, tier.team_rows, kGroup, true>(
        args, team, row, count, 0, static_cast<int32_t>(args.shape.cols),
        [&](auto n, int k) { return input_row<Pass, int32_t, n()>(args, row + k); },
        [&](auto n, int k) { return result_row<Pass, int32_t, n()>(args, row + k); }, inputs);
  }
}

template <class Pass, int kThreads, int kBytes>
__global__ void __launch_bounds__(kThreads, Pass::kResident / kThreads)
    batch_kernel(const __grid_constant__ Batch<typename Pass::Args, kBytes> batch) {
  const int i = batch.entry_of(blockIdx.x);
  with_tier<Tiers<Pass>, kThreads>(
      batch.entries[i].tier, [&](auto tier) { work_on_block<Pass, tier()>(batch, again(i)); });
}

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

template <class Pass>
constexpr Kernels<typename Pass::Args> kernels() {
  using Table = Tiers<Pass>;
  constexpr int kCluster = tier_of_form<Table>(Form::kCluster, Access::kVector);
  constexpr int kSplit = tier_of_form<Table>(Form::kSplit, Access::kVector);
  constexpr int kScalarSplit = tier_of_form<Table>(Form::kSplit, Access::kScalar);
  return {Table::kVec,
          Table::list,
          tier_of<Table>,
          Pass::kResident,
          sizeof(Moments<typename Pass::A>),
          batch_kernel<Pass, 128, kSmallBytes>,
          batch_kernel<Pass, 128, kLargeBytes>,
          batch_kernel<Pass, 256, kSmallBytes>,
          batch_kernel<Pass, 512, kSmallBytes>,
          cluster_kernel<Pass, kCluster>,
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
