// The launch table's form, and the plan of one launch.
#pragma once

#include "api.h"
#include "rows.cuh"
#include "team.cuh"

namespace ws {

template <class Args>
struct Tier {
  const char* name;
  int64_t max_cols;  // the longest row that it is for
  int team;          // threads that share a row
  int elements;      // of a row that each of them holds at a time
  void (*kernel)(Args);
};

// The kernels of one pair of types, by length of row; the last of each list takes any length.
template <class Args>
struct Tiers {
  int weight_bytes;  // of an element
  int out_bytes;
  int vec;               // elements that a vector access moves
  Tier<Args> vector[9];  // where every tensor allows vector accesses
  Tier<Args> scalar[6];  // everywhere: an access an element, hence more threads with fewer of them
};

template <class Args>
Plan plan_of(const Tiers<Args>& tiers, const Shape& shape, bool vector) {
  const Tier<Args>* tier = vector ? tiers.vector : tiers.scalar;
  while (shape.cols > tier->max_cols) ++tier;
  const int threads = block_threads(tier->team);
  const int rows_of_block = threads / tier->team;
  constexpr int64_t kMaxX = INT32_MAX;  // CUDA's limit
  const int64_t blocks = (shape.rows + rows_of_block - 1) / rows_of_block;
  const int64_t x = blocks < kMaxX ? blocks : kMaxX;
  return {tier->name,
          tier->max_cols,
          tier->team,
          tier->elements,
          vector ? tiers.vec : 1,
          threads,
          {static_cast<uint32_t>(x), static_cast<uint32_t>(blocks / kMaxX + (blocks % kMaxX != 0))},
          reinterpret_cast<const void*>(tier->kernel)};
}

inline bool is_empty(const Shape& shape) { return shape.rows == 0 || shape.cols == 0; }

}  // namespace ws
