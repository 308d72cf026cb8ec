// The launch table: which kernel runs rows of which length, and the plan of one launch.
#pragma once

#include <cstdint>

#include "api.h"
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

// The kernels of one pair of types, shortest rows first; the last of each takes any length.
template <class Args>
struct Tiers {
  int weight_bytes;  // of an element
  int out_bytes;
  int vec;                // elements that a vector access moves
  Tier<Args> vector[9];   // where every tensor allows vector accesses
  Tier<Args> scalar[6];   // everywhere: an access an element, so more threads with fewer each
};

template <class Args>
Plan plan_of(const Tiers<Args>& tiers, int64_t rows, int64_t cols, bool vector) {
  const Tier<Args>* tier = tiers.tier;
  while (cols > tier->max_cols) ++tier;
  const int threads = block_threads(tier->team);
  const int64_t blocks = (rows - 1) / (threads / tier->team) + 1;
  constexpr int64_t kMaxBlocksX = (int64_t{1} << 31) - 1;
  const int64_t y = (blocks - 1) / kMaxBlocksX + 1;
  const auto kernel = vector ? tier->vector : tier->scalar;
  return {tier->name,
          tier->max_cols,
          tier->team,
          tier->elements,
          vector ? tiers.vec : 1,
          threads,
          {static_cast<uint32_t>(y > 1 ? kMaxBlocksX : blocks), static_cast<uint32_t>(y)},
          reinterpret_cast<const void*>(kernel)};
}

}  // namespace ws
