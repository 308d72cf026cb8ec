// How a team's threads share the columns of a row, and how they reach them in memory.
//
// A thread holds kElements columns in registers, in groups of kGroup: of as many as a vector access
// moves, or of 1. Group after group, neighbouring threads hold neighbouring columns, so that a warp
// accesses whole stretches of memory with either. A row longer than the tile that a team holds,
// kTeam * kElements columns, is worked on tile by tile.
#pragma once

#include "../../standardize.h"
#include "elements.cuh"

namespace ws {

// Whether a tensor's rows are without gaps, and need no notice of runs.
__host__ __device__ inline bool has_dense_rows(const Shape& shape, const Strides& strides) {
  return shape.run == shape.cols || strides.run == shape.run;
}

// The columns of one thread. Index: what counts them, 32 bits where a row fits a team's registers.
template <int kTeam, int kGroup, class Index>
struct Columns {
  int first;  // column of register 0
  Index end;  // of the row, or of the part of it that is worked on

  // Whether the row reaches to register i, in the tile that starts at column `tile`.
  __device__ __forceinline__ bool has(Index tile, int i) const {
    return (i - i % kGroup) * kTeam < end - first - tile;
  }
};

// One row of a tensor.
template <class T, class Index>
struct Row {
  using Element = T;

  T* data;  // [cols / run runs, run]
  Index run;
  int64_t run_stride;
  bool dense;

  // `tensor` is a T* without its type, const like T.
  template <class Pointer>
  __device__ Row(Pointer tensor, int64_t row, const Shape& shape, const Strides& strides)
      : data(static_cast<T*>(tensor) + row * strides.row),
        run(static_cast<Index>(shape.run)),
        run_stride(strides.run),
        dense(has_dense_rows(shape, strides)) {}

  // A dense one.
  __device__ explicit Row(T* data) : data(data), run(1), run_stride(1), dense(true) {}

  // Calls visit(address, i) for every group of columns, i its first register.
  template <int kElements, int kTeam, int kGroup, class Visit>
  __device__ __forceinline__ void each(const Columns<kTeam, kGroup, Index>& columns, Index tile,
                                       Visit visit) const {
    if (dense) {
      T* address = data + (tile + columns.first);
#pragma unroll
      for (int i = 0; i < kElements; i += kGroup) {
        if (columns.has(tile, i)) visit(address + i * kTeam, i);
      }
    } else {
      // A division per access would cost more than its memory traffic: from one to the next, the
      // place in the run moves by a fixed amount, and at most one run further than that.
      constexpr Index kStep = kTeam * kGroup;
      const Index step_in_run = kStep % run;
      const int64_t step = kStep / run * run_stride + step_in_run;
      const Index first = tile + columns.first;
      Index in_run = first % run;
      T* address = data + (first / run * run_stride + in_run);
#pragma unroll
      for (int i = 0; i < kElements; i += kGroup) {
        if (columns.has(tile, i)) visit(address, i);
        in_run += step_in_run;
        address += step;
        if (in_run >= run) {
          in_run -= run;
          address += run_stride - run;
        }
      }
    }
  }
};

// Loads a thread's columns as they lie in memory, and waits for none of them: each use of a word would
// hold up the loads after it. With kOnce, the row is global memory and not read again.
template <bool kOnce, class T, int kWords, int kTeam, int kGroup, class Index>
__device__ __forceinline__ void read(const Row<T, Index>& row,
                                     const Columns<kTeam, kGroup, Index>& columns, Index tile,
                                     Word<T, kGroup> (&words)[kWords]) {
  row.template each<kWords * kGroup>(columns, tile, [&](const T* from, int i) {  //
    words[i / kGroup] = load<kGroup, kOnce>(from);
  });
}

// With kGlobal, the row is global memory.
template <bool kGlobal, class T, class A, int kElements, int kTeam, int kGroup, class Index>
__device__ __forceinline__ void write(const Row<T, Index>& row,
                                      const Columns<kTeam, kGroup, Index>& columns, Index tile,
                                      const A (&values)[kElements]) {
  row.template each<kElements>(columns, tile, [&](T* to, int i) {  //
    store<kGroup, kGlobal>(to, values + i);
  });
}

}  // namespace ws
