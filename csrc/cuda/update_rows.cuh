// The results of a team's rows from their moments, and a step of an optimizer on them in place.
#pragma once

#include "../update.h"
#include "operands.cuh"
#include "rows/moments.cuh"
#include "rows/stretch.cuh"

namespace ws {

// Writes the result of each row, which replaces input number Pass::kReplaced, if there is one.
template <class Pass, bool kGlobal, class Team, class Columns, class A, int kRows, int kElements,
          class To, class... Others>
__device__ __forceinline__ void finish_rows(const typename Pass::Args& args, const Team& team,
                                            int64_t row, int32_t count, int32_t begin,
                                            const Columns& columns,
                                            const Moments<A> (&moments)[kRows],
                                            const typename Pass::Vectors (&vectors)[kRows], To to,
                                            Elements<A, kRows, kElements>& first,
                                            Others&... others) {
  A(*const x[])[kElements] = {first.elements, others.elements...};
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (k > 0 && k >= count) break;
    const bool writes = begin == 0 && team.thread == 0;
    const auto by = Pass::factors(moments[k], vectors[k], args, row + k, writes);
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      Pass::apply(by, first.elements[k][i], others.elements[k][i]...);
    if constexpr (Pass::kReplaced >= 0)
      write_row<kGlobal>(to(k), columns, begin, x[Pass::kReplaced][k]);
  }
}

// The numbers of a step. One thread of a block finds them, and others read them when they need them:
// registers are for the rows.
template <class A>
__device__ __forceinline__ Step<A>& shared_step() {
  __shared__ Step<A> step;
  return step;
}
template <class A>
__device__ __forceinline__ Step<A> step_again() {
  asm volatile("" ::: "memory");  // or the compiler would keep what it has read before
  return shared_step<A>();
}

// By all threads of a block, first. False if nothing is to be written, because a gradient is not finite.
template <class A>
__device__ __forceinline__ bool begin_step(const Rule& rule) {
  if (threadIdx.x == 0) shared_step<A>() = step_of<A>(rule);
  const bool found_inf = rule.found_inf && *rule.found_inf != 0;
  __syncthreads();
  return !found_inf;
}

// Has a row's states on their way while its moments are found: as far as the second-level cache, since
// registers are not free before.
template <class Pass, int kElements, int kTeam, int kGroup, class Index>
__device__ __forceinline__ void fetch_states(const Place<Update>& place,
                                             const Columns<kTeam, kGroup, Index>& columns,
                                             Index tile) {
  using W = typename Pass::Weight;
  if (threadIdx.x % (128 / (kGroup * sizeof(W))) != 0) return;  // one of a line's threads
  unroll<3>([&](auto n) {
    const auto row = operand_row<Pass, Index, Update::kFirst + n()>(place);
    if (row.operand.data == nullptr) return;
    row.template as<W>().template each<kElements>(columns, tile,
                                                  [](const W* from, int) { fetch(from); });
  });
}

// x[i] = x[i + kBy], and around.
template <int kBy, class A, int kElements>
__device__ __forceinline__ void rotate(A (&x)[kElements]) {
  A head[kBy];
#pragma unroll
  for (int i = 0; i < kBy; ++i) head[i] = x[i];
#pragma unroll
  for (int i = 0; i < kElements - kBy; ++i) x[i] = x[i + kBy];
#pragma unroll
  for (int i = 0; i < kBy; ++i) x[kElements - kBy + i] = head[i];
}

// A step with g on a row, or on a tile of it: w becomes the new one. Of the states a thread has few columns
// at a time, so that w and g may have nearly all registers; and there is code for as few, past which w and g
// are moved, because all of it for every tier would take minutes to compile.
template <class Pass, int kTeam, int kGroup, class Index, int kElements, class A, class Where>
__device__ __forceinline__ void step_row(Where where, const Columns<kTeam, kGroup, Index>& columns,
                                         Index tile, A (&w)[kElements], A (&g)[kElements]) {
  using W = typename Pass::Weight;
  // Where others need more registers: w and g of wide tiers, and indices of 64 bits.
  constexpr bool kFew = kElements * sizeof(A) > 128 || sizeof(Index) > 4;
  constexpr int kAtOnce = (kFew ? 16 : 32) / sizeof(A);
  constexpr int kGroups = kAtOnce / kGroup;
  static_assert(kElements % kAtOnce == 0 && kAtOnce % kGroup == 0);
  // Columns after the tile's first are counted in 32 bits: 64 take a function to divide.
  const auto run_of = [&] { return static_cast<Index>(where().args.shape.run); };
  const Index first_run = tile / run_of(), in_run = tile % run_of();
#pragma unroll 1
  for (int i = 0; i < kElements; i += kAtOnce) {
    const Update& args = where().args;
    Index runs[kGroups];  // before each group's
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int column = columns.first + (i + group * kGroup) * kTeam;
      const Index beyond = in_run + column - run_of();
      const auto run = static_cast<unsigned>(std::min<Index>(run_of(), INT32_MAX));
      runs[group] = first_run + (beyond < 0 ? 0 : 1 + static_cast<unsigned>(beyond) / run);
    }
    const auto at = [&](int operand, int group) {
      const Place<Update> place = where();
      const Operand& tensor = place.args.operands[operand];
      const Index column = tile + columns.first + (i + group * kGroup) * kTeam;
      return static_cast<W*>(tensor.data) + place.row * tensor.strides.row +
             runs[group] * (tensor.strides.run - place.args.shape.run) + column;
    };
    const auto has = [&](int group) { return columns.has(tile + i * kTeam, group * kGroup); };
    const bool adam = args.rule.adam, has_first = args.operands[Update::kFirst].data != nullptr;
    Word<W, kGroup> first_words[kGroups], second_words[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (!has(group)) continue;
      if (has_first) first_words[group] = load<kGroup, true>(at(Update::kFirst, group));
      if (adam) second_words[group] = load<kGroup, true>(at(Update::kSecond, group));
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const bool amsgrad = args.operands[Update::kLargest].data != nullptr;
      A first[kGroup], second[kGroup], largest[kGroup];
      unpack<W, kGroup>(first_words[group], first);
      unpack<W, kGroup>(second_words[group], second);
      if (amsgrad && has(group))
        unpack<W, kGroup>(load<kGroup, true>(at(Update::kLargest, group)), largest);
      const auto step = [&](auto is_adam) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          Step<A> by = step_again<A>();
          by.adam = is_adam();
          take_step(by, A(1), is_adam() && amsgrad, g[group * kGroup + k], w[group * kGroup + k],
                    first[k], second[k], largest[k]);
        }
      };
      if (adam) {
        step(std::true_type());
      } else {
        step(std::false_type());
      }
      if (!has(group)) continue;
      if (has_first) store<kGroup, true>(at(Update::kFirst, group), first);
      if (adam) store<kGroup, true>(at(Update::kSecond, group), second);
      if (amsgrad) store<kGroup, true>(at(Update::kLargest, group), largest);
      store<kGroup, true>(at(Update::kWeight, group), w + group * kGroup);
    }
    rotate<kAtOnce>(w);
#pragma unroll
    for (int k = 0; k < kElements - kAtOnce; ++k) g[k] = g[k + kAtOnce];
  }
}

// A step on a team's row, and its next result.
template <class Pass, class Where, class Team, class Columns, class A, int kElements, class To>
__device__ __forceinline__ void update_rows(Where where, Team& team, int32_t begin,
                                            const Columns& columns, const Moments<A> (&moments)[1],
                                            const typename Pass::Vectors (&vectors)[1], To to,
                                            Elements<A, 1, kElements>& w,
                                            Elements<A, 1, kElements>& g) {
  using Next = typename Pass::Next;
  const bool is_first = begin == 0 && team.thread == 0;
  const auto by = Pass::factors(moments[0], vectors[0], where().args, where().row, is_first);
#pragma unroll
  for (int i = 0; i < kElements; ++i) Pass::apply(by, w.elements[0][i], g.elements[0][i]);
  step_row<Pass>(where, columns, begin, w.elements[0], g.elements[0]);
  const Place<Update> place = where();
  const typename Next::Vectors next[1] = {Next::load(place.args, place.row)};
  // The forward pass's moments, about the row's new first element.
  A pivot[1][1] = {{is_first ? w.elements[0][0] : A(0)}};
  team.sum(pivot[0]);
  A(*const x[])[kElements] = {w.elements};
  Moments<A> found[1];
  find_moments<false>(team, x, columns, begin, pivot, static_cast<A>(place.args.shape.cols),
                      place.args.formula.center, found);
  finish_rows<Next, true>(place.args, team, place.row, 1, begin, columns, found, next, to, w);
}

// kCount elements as one access, or as one each.
template <int kCount, class T, class A>
__device__ __forceinline__ void get(const T* from, bool aligned, A* values) {
  if (aligned) return unpack<T, kCount>(load<kCount, true>(from), values);
#pragma unroll
  for (int k = 0; k < kCount; ++k) unpack<T, 1>(load<1, true>(from + k), values + k);
}
template <int kCount, class T, class A>
__device__ __forceinline__ void put(T* to, bool aligned, const A* values) {
  if (aligned) return store<kCount, true>(to, values);
#pragma unroll
  for (int k = 0; k < kCount; ++k) store<1, true>(to + k, values + k);
}

// A step on a block's flat rows, of w and g in shared memory, in the order in which they lie in memory; w
// becomes the new one there.
template <class Pass, int kGroup, class A>
__device__ __forceinline__ void step_stretch(const Place<Update>& first_row, int count, A* w,
                                             const A* g) {
  using W = typename Pass::Weight;
  const Update& args = first_row.args;
  const auto stretch_of = [&](int operand) {
    const Operand& tensor = args.operands[operand];
    return Stretch<W, A, kGroup>(static_cast<W*>(tensor.data) + first_row.row * tensor.strides.row,
                                 count);
  };
  const auto weight = stretch_of(Update::kWeight), first = stretch_of(Update::kFirst);
  const auto second = stretch_of(Update::kSecond), largest = stretch_of(Update::kLargest);
  const bool adam = args.rule.adam, has_first = args.operands[Update::kFirst].data != nullptr;
  const bool amsgrad = args.operands[Update::kLargest].data != nullptr;
  const auto step = [&](int at, auto size) {
    constexpr int kCount = size();
    A of_w[kCount], of_first[kCount], of_second[kCount], of_largest[kCount];
    const auto aligned = [&](const auto& state) { return state.phase == weight.phase; };
    if (has_first) get<kCount>(first.data + at, aligned(first), of_first);
    if (adam) get<kCount>(second.data + at, aligned(second), of_second);
    if (amsgrad) get<kCount>(largest.data + at, aligned(largest), of_largest);
    const Step<A> by = step_again<A>();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      of_w[k] = w[at + k];
      take_step(by, A(1), amsgrad, g[at + k], of_w[k], of_first[k], of_second[k], of_largest[k]);
      w[at + k] = of_w[k];
    }
    if (has_first) put<kCount>(first.data + at, aligned(first), of_first);
    if (adam) put<kCount>(second.data + at, aligned(second), of_second);
    if (amsgrad) put<kCount>(largest.data + at, aligned(largest), of_largest);
    store<kCount, true>(weight.data + at, of_w);
  };
  weight.template each<kTile<A>>(
      [&](int at, int) { step(at, std::integral_constant<int, kGroup>()); },
      [&](int at, bool) { step(at, std::integral_constant<int, 1>()); });
}

}  // namespace ws
