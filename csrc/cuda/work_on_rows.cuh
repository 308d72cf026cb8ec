// What a team does with its rows: reads their inputs, finds their moments, writes their results.
#pragma once

#include "launch/batch.h"
#include "launch/tiers.h"
#include "rows/moments.cuh"

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
using ElementOf = std::conditional_t<Pass::Args::kOf[kOperand] == Of::kWeight,
                                     typename Pass::Weight, typename Pass::Out>;
template <class Pass, int n>
using InputOf = const ElementOf<Pass, Pass::Args::kFirstInput + n>;
template <class Pass, int n>
using ResultOf = ElementOf<Pass, n>;
template <class Pass>
using InputsOf = std::make_integer_sequence<int, kInputs<typename Pass::Args>>;

template <class Pass, class Index, int n>
__device__ __forceinline__ Row<InputOf<Pass, n>, Index> input_row(const typename Pass::Args& args,
                                                                  int64_t row) {
  const Operand& input = args.operands[Pass::Args::kFirstInput + n];
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

}  // namespace ws
