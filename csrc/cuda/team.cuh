// A team: the threads that share a row, which are some or all of a warp, or all of a block.
#pragma once

#include <cstdint>

namespace ws {

constexpr int kWarp = 32;

// Small teams share a block, or the number of blocks that an SM can hold would leave it half empty.
constexpr int block_threads(int team) { return team < 128 ? 128 : team; }

// Blocks an SM has to hold. Left to itself, the compiler spills registers to fit some number more.
constexpr int kMinBlocks = 1;

// Adds up the values of every group of kLanes neighbouring lanes. All of a group get bitwise the
// same sums, because a + b = b + a.
template <int kLanes, class A, int kCount>
__device__ __forceinline__ void sum_lanes(A (&values)[kCount], unsigned mask) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] += __shfl_xor_sync(mask, values[k], distance);
  }
}

template <class A, int kCount>
__device__ __forceinline__ void add(A (&sums)[kCount], const A (&values)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) sums[k] += values[k];
}

template <int kTeam>
struct Team {
  int thread = threadIdx.x % kTeam;

  // The row it works on. More blocks than a grid's x can count go on in its y.
  __device__ static int64_t row() {
    constexpr int kRows = block_threads(kTeam) / kTeam;
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    return block * kRows + threadIdx.x / kTeam;
  }

  // Adds up the values of its threads; all of them get bitwise the same sums. To be called once in
  // a kernel for each kCount: slower threads may still read the memory of the call before.
  template <class A, int kCount>
  __device__ __forceinline__ void sum(A (&values)[kCount]) const {
    constexpr int kLanes = kTeam < kWarp ? kTeam : kWarp;
    const int first_lane = threadIdx.x % kWarp / kLanes * kLanes;
    sum_lanes<kLanes>(values, (~0u >> (kWarp - kLanes)) << first_lane);
    if constexpr (kTeam > kWarp) {
      constexpr int kWarps = kTeam / kWarp;
      __shared__ A partial[kCount][kWarps];
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) partial[k][threadIdx.x / kWarp] = values[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = partial[k][threadIdx.x % kWarps];
      sum_lanes<kWarps>(values, ~0u);
    }
  }
};

}  // namespace ws
