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

#include "launch/launch.h"
#include "rows/stretch.cuh"
#include "shared_rows.cuh"
#include "work_on_rows.cuh"

namespace ws {

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
