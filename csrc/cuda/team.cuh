// A team: the threads that share a row, which are some or all of a warp, or all of a block.
#pragma once

#include <cstdint>

namespace ws {

constexpr int kWarp = 32;

// Small teams share a block, or the number of blocks that an SM can hold would leave it half empty.
constexpr int block_threads(int team) { return team < 128 ? 128 : team; }

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

template <int kTeam>
struct Team {
  int thread = threadIdx.x % kTeam;
  int half = 0;

  // The row it works on. More blocks than a grid's x can count go on in its y.
  __device__ static int64_t row() {
    constexpr int kRows = block_threads(kTeam) / kTeam;
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    return block * kRows + threadIdx.x / kTeam;
  }

  // Adds up the values of its threads; all of them get bitwise the same sums.
  template <class A, int kCount>
  __device__ __forceinline__ void sum(A (&values)[kCount]) {
    constexpr int kLanes = kTeam < kWarp ? kTeam : kWarp;
    const int first_lane = threadIdx.x % kWarp / kLanes * kLanes;
    sum_lanes<kLanes>(values, (~0u >> (kWarp - kLanes)) << first_lane);
    if constexpr (kTeam > kWarp) {
      constexpr int kWarps = kTeam / kWarp;
      // Two halves, in turn: while a slow thread still reads one, a fast one may already write to
      // the other, and the barrier there holds it up before it comes round to the first again.
      __shared__ A partial[2][kCount][kWarps];
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) partial[half][k][threadIdx.x / kWarp] = values[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = partial[half][k][threadIdx.x % kWarps];
      sum_lanes<kWarps>(values, ~0u);
      half ^= 1;
    }
  }
};

}  // namespace ws
