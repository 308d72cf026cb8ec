// What a team does with its rows: reads their inputs, finds their moments, writes their results.
#pragma once

#include "rows/moments.cuh"
#include "update_rows.cuh"

namespace ws {

// The columns from `begin` to `end` of a team's rows: kRows of them, or `count` where fewer are left.
// where() is the Place of the first, from(n, k) input n of the k-th, and to(k) its result.
// All loads are under way before the first is waited for: words, then elements, never one of each.
template <class Pass, int kElements, int kRows, int kGroup, bool kGlobal, class Team, class Where,
          class From, class To, int... n>
__device__ __forceinline__ void work_on_rows(Where where, Team& team, int32_t count, int32_t begin,
                                             int32_t end, From from, To to,
                                             std::integer_sequence<int, n...>) {
  using A = typename Pass::A;
  const Place<typename Pass::Args> place = where();
  const auto& args = place.args;
  const Columns<Team::kThreads, kGroup, int32_t> columns = {team.thread * kGroup, end};
  // In the place of a row that is not there, the first one is worked on again, and not written.
  const auto there = [&](int k) { return k == 0 || k < count ? k : 0; };
  const auto read_input = [&](auto input) {
    Words<typename decltype(from(input, 0))::Element, kRows, kElements, kGroup> loaded;
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      read_row<kGlobal>(from(input, there(k)), columns, begin, loaded, k);
    return loaded;
  };
  A pivot[Pass::kHeld][kRows];
  typename Pass::Vectors vectors[kRows];
  const auto load_vectors = [&] {
#pragma unroll
    for (int k = 0; k < kRows; ++k) vectors[k] = Pass::load(args, place.row + there(k));
  };
  const auto work = [&](auto&&... inputs) {
    if constexpr (kInPlace<Pass>) load_vectors();  // registers are scarce while words are unpacked
    A(*const x[])[kElements] = {inputs.elements...};
    Moments<A> moments[kRows];
    find_moments<Pass::kSquaresG>(team, x, columns, begin, pivot, static_cast<A>(args.shape.cols),
                                  args.formula.center, moments);
    if constexpr (!kGlobal) team.sync();  // before pivots are overwritten, which all threads read
    if constexpr (kGlobal && kInPlace<Pass>) {
      update_rows<Pass>(where, team, begin, columns, moments, vectors, to, inputs...);
    } else {
      finish_rows<Pass, kGlobal>(args, team, place.row, count, begin, columns, moments, vectors, to,
                                 inputs...);
    }
  };
  const auto unpack_all = [&](const auto&... loaded) {
    if constexpr (kGlobal && kInPlace<Pass>) fetch_states<Pass, kElements>(place, columns, begin);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      unroll<Pass::kHeld>(
          [&](auto input) { pivot[input][k] = first_of<A>(from(input, there(k))); });
    }
    if constexpr (!kInPlace<Pass>) load_vectors();
    work(Elements<A, kRows, kElements>(loaded)...);
  };
  unpack_all(read_input(std::integral_constant<int, n>())...);
}

}  // namespace ws
