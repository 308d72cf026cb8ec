// The kernels, in one form for all passes: read a row's inputs, find its moments, write its results.
//
// A row that the registers of its team or its cluster hold is read from memory once and written once;
// one that is split over blocks is read again, from the cache if it can be.
//
// A pass (passes/) is a struct of what differs:
//
//   Args, Weight, Out, Grad, A               its arguments (standardize.h), the tensors' element types,
//                                            and the type that it computes in
//   kHeld, kReplaced                         inputs that a team holds, 1 or 2: w and g; and which of them
//                                            the result of an element replaces, -1: none
//   kSquaresG                                whether its moments have squares_g (rows/moments.cuh)
//   kResident                                threads that a multiprocessor has to hold at once, which
//                                            limits the registers of each (launch/tiers.h)
//   load(args, row)                          Vectors: a row's element of each vector that it reads
//   factors(moments, vectors, args,          Factors: the scalars of a row; with `writes`, this thread
//           row, writes)                     is to store what the pass writes of them
//   apply(factors, x, ...)                   x, ...: one column's element of each input
//   Next                                     of a pass that updates its weight: the pass of the out
#pragma once

#include "launch/launch.h"
#include "rows/stretch.cuh"
#include "shared_rows.cuh"
#include "work_on_rows.cuh"

namespace ws {

template <class Args, class Batch>
__device__ __forceinline__ Place<Args> place_of(const Batch& batch, int i, int row_of_block) {
  return {batch.entries[i].args, static_cast<Types>(batch.entries[i].types),
          batch.first_row(i) + row_of_block};
}

// The rows of a block of entry number i, which are one stretch of every tensor.
template <class Args>
struct FlatRows {
  Place<Args> first;
  int count, cols;

  template <class Batch>
  __device__ FlatRows(const Batch& batch, int i)
      : first(place_of<Args>(batch, i, 0)),
        count(static_cast<int>(
            std::min<int64_t>(first.args.shape.rows - first.row, batch.entries[i].rows))),
        cols(static_cast<int>(first.args.shape.cols)) {}
};

template <class Pass, class Batch>
__device__ __forceinline__ void work_on_flat_block(const Batch& batch, int i) {
  using Args = typename Pass::Args;
  using A = typename Pass::A;
  constexpr int kVec = Tiers<Pass>::kVec;
  // Between the loads, a team's row and the stores, registers are for the row.
  const auto rows_again = [&] { return FlatRows<Args>(batch, again(i)); };
  const auto stretch = [](auto element, const auto& row, const FlatRows<Args>& rows) {
    using T = decltype(element);
    return Stretch<T, A, kVec>(row.template as<T>().data, rows.count * rows.cols);
  };
  const auto tile_of = [](auto number) { return shared_tile<A, kTile<A> + kVec, number()>(); };
  int phases[Pass::kHeld];  // where each input begins in its tile
  const auto put = [&](auto number, const auto& stretch, const auto& loaded) {
    stretch.template put<kTile<A>>(loaded, tile_of(number));
    phases[number] = stretch.phase;
  };
  {
    // The loads of both inputs, and only then what waits for them.
    constexpr std::integral_constant<int, 0> of_w;
    constexpr std::integral_constant<int, 1> of_g;
    const FlatRows<Args> rows(batch, i);
    const auto first = input_row<Pass, int32_t, 0>(rows.first);
    const auto w = stretch(typename Pass::Weight(), first, rows);
    const auto loaded = w.template load_all<kTile<A>>();
    if constexpr (Pass::kHeld == 1) {
      put(of_w, w, loaded);
    } else if constexpr (!std::is_same_v<typename Pass::Grad, Several>) {
      const auto g = stretch(typename Pass::Grad(), input_row<Pass, int32_t, 1>(rows.first), rows);
      const auto loaded_g = g.template load_all<kTile<A>>();
      put(of_w, w, loaded);
      put(of_g, g, loaded_g);
    } else {
      const auto second = input_row<Pass, int32_t, 1>(rows.first);
      const auto wide = stretch(float(), second, rows);
      const auto half = stretch(__half(), second, rows);
      const auto bfloat16 = stretch(__nv_bfloat16(), second, rows);
      decltype(wide.template load_all<kTile<A>>()) loaded_wide;
      decltype(half.template load_all<kTile<A>>()) narrow;  // for bits, both are the same
      if (second.kind == Kind::kFloat) {
        loaded_wide = wide.template load_all<kTile<A>>();
      } else {
        narrow = half.template load_all<kTile<A>>();
      }
      put(of_w, w, loaded);
      if (second.kind == Kind::kFloat) {
        put(of_g, wide, loaded_wide);
      } else if (second.kind == Kind::kHalf) {
        put(of_g, half, narrow);
      } else {
        put(of_g, bfloat16,
            reinterpret_cast<decltype(bfloat16.template load_all<kTile<A>>())&>(narrow));
      }
    }
  }
  __syncthreads();
  const auto work_on_all = [&](auto pass, auto numbers) {
    using P = decltype(pass);
    with_tier<Tiers<Pass>, 128, true>(batch.entries[again(i)].tier, [&](auto number_of_tier) {
      constexpr Tier tier = Tiers<Pass>::list[number_of_tier()];
      Team<tier.team> team;
#pragma unroll 1
      for (int row = team.index;; row += tier.threads() / tier.team) {
        const FlatRows<Args> rows = rows_again();
        if (row >= rows.count) break;
        const auto at = [&](auto number, int) {
          return Row<A, int32_t>(tile_of(number) + phases[number] + row * rows.cols);
        };
        const auto to = [&](int k) {
          return at(std::integral_constant<int, std::max(P::kReplaced, 0)>(), k);
        };
        const auto where = [&] { return place_of<Args>(batch, again(i), row); };
        work_on_rows<P, tier.elements, 1, 1, false>(where, team, 1, 0, rows.cols, at, to, numbers);
      }
    });
    __syncthreads();
  };
  work_on_all(Pass(), InputsOf<Pass>());
  const auto first_tile = [&] { return tile_of(std::integral_constant<int, 0>()) + phases[0]; };
  if constexpr (kInPlace<Pass>) {
    const FlatRows<Args> rows = rows_again();
    step_stretch<Pass, kVec>(rows.first, rows.count * rows.cols, first_tile(),
                             tile_of(std::integral_constant<int, 1>()) + phases[1]);
    __syncthreads();
    work_on_all(typename Pass::Next(), InputsOf<typename Pass::Next>());
  }
  if constexpr (Args::kFirstInput > 0) {
    const FlatRows<Args> rows = rows_again();
    const auto row = operand_row<Pass, int32_t, 0>(rows.first);
    with_element<ElementOf<Pass, 0>>(row.kind, [&](auto element) {
      const auto result = stretch(element, row, rows);
      result.template store_from<kTile<A>>(first_tile(), phases[0] == result.phase);
    });
  }
}

// A block of entry number i.
template <class Pass, int kTier, class Batch>
__device__ __forceinline__ void work_on_block(const Batch& batch, int i) {
  constexpr Tier tier = Tiers<Pass>::list[kTier];
  constexpr int kGroup = tier.access == Access::kVector ? Tiers<Pass>::kVec : 1;
  Team<tier.team> team;
  const auto where = [&] {
    return place_of<typename Pass::Args>(batch, again(i), team.index * tier.team_rows);
  };
  const Place<typename Pass::Args> first = where();
  const int64_t left = first.args.shape.rows - first.row;
  if (left <= 0) return;
  const int count = static_cast<int>(std::min<int64_t>(left, tier.team_rows));
  work_on_rows<Pass, tier.elements, tier.team_rows, kGroup, true>(
      where, team, count, 0, static_cast<int32_t>(first.args.shape.cols),
      [&](auto n, int k) { return input_row<Pass, int32_t, n()>(first, k); },
      [&](int k) { return operand_row<Pass, int32_t, 0>(kInPlace<Pass> ? where() : first, k); },
      InputsOf<Pass>());
}

template <class Pass, int kThreads, int kBytes>
__global__ void __launch_bounds__(kThreads, Pass::kResident / kThreads)
    batch_kernel(const __grid_constant__ Batch<typename Pass::Args, kBytes> batch) {
  using Table = Tiers<Pass>;
  const int i = batch.entry_of(blockIdx.x);
  const int tier = batch.entries[i].tier;
  if constexpr (kInPlace<Pass>) {
    if (!begin_step<typename Pass::A>(batch.entries[i].args.rule)) return;
  }
  if constexpr (kThreads == 128) {
    if (tier >= first_tier_of<Table>(Access::kFlat) && tier < first_tier_of<Table>(Access::kScalar))
      return work_on_flat_block<Pass>(batch, i);
  }
  with_tier<Table, kThreads, false>(
      tier, [&](auto tier) { work_on_block<Pass, tier()>(batch, again(i)); });
}

// The launches of split rows.
template <class Pass, Access kAccess>
constexpr void split_kernels(void (*(&found)[4])(Split<typename Pass::Args>)) {
  constexpr int kTier = tier_of_form<Tiers<Pass>>(Form::kSplit, kAccess);
  found[0] = split_kernel<Pass, kTier, Stage::kMoments>;
  if constexpr (kInPlace<Pass>) {
    found[1] = split_kernel<Pass, kTier, Stage::kUpdate>;
    found[2] = split_kernel<typename Pass::Next, kTier, Stage::kMoments>;
    found[3] = split_kernel<typename Pass::Next, kTier, Stage::kApply>;
  } else {
    found[1] = split_kernel<Pass, kTier, Stage::kApply>;
  }
}

template <class Pass>
constexpr Kernels<typename Pass::Args> kernels() {
  using Table = Tiers<Pass>;
  constexpr int kCluster = tier_of_form<Table>(Form::kCluster, Access::kVector);
  Kernels<typename Pass::Args> found{
      Table::kVec,
      Table::list,
      tier_of<Table>,
      Pass::kResident,
      sizeof(Moments<typename Pass::A>),
      nullptr,
      batch_kernel<Pass, 128, kLargeBytes>,
      batch_kernel<Pass, 256, kSmallBytes>,
      batch_kernel<Pass, 512, kSmallBytes>,
      cluster_kernel<Pass, kCluster>,
      {},
  };
  if constexpr (!Table::kFew) found.block_of_128 = batch_kernel<Pass, 128, kSmallBytes>;
  split_kernels<Pass, Access::kVector>(found.split[0]);
  split_kernels<Pass, Access::kScalar>(found.split[1]);
  return found;
}

template <template <class, class> class Pass, class Args>
constexpr Kernels<Args> kKernels[kTypesCount] = {
    kernels<Pass<double, double>>(), kernels<Pass<float, float>>(),
    kernels<Pass<__half, __half>>(), kernels<Pass<__nv_bfloat16, __nv_bfloat16>>(),
    kernels<Pass<float, __half>>(),  kernels<Pass<float, __nv_bfloat16>>(),
};

}  // namespace ws
