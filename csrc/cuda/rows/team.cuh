// A team: the threads that share a row, which are some or all of a warp, or all of a block.
#pragma once

#include <cstdint>

namespace ws {

constexpr int kWarp = 32;

// The same number, but the compiler does not know that: what is found by it is read again, and not kept
// in registers until then.
__device__ __forceinline__ int again(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

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
  static constexpr int kThreads = kTeam;
  static constexpr int kLanes = kTeam < kWarp ? kTeam : kWarp;

  int thread = threadIdx.x % kTeam;
  int index = threadIdx.x / kTeam;  // of the team, in the block
  int turn = 0;

  // Adds up the values of its threads; all of them get bitwise the same sums.
  template <class A, int kCount>
  __device__ __forceinline__ void sum(A (&values)[kCount]) {
    sum_lanes<kLanes>(values, lanes());
    if constexpr (kTeam > kWarp) {
      // Calls take turns: slower threads may still read what the call before has left.
      constexpr int kWarps = kTeam / kWarp;
      __shared__ A partial[2][kCount][kWarps];
      const int thread = again(threadIdx.x);
      if (thread % kWarp == 0) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) partial[turn][k][thread / kWarp] = values[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = partial[turn][k][threadIdx.x % kWarps];
      sum_lanes<kWarps>(values, ~0u);
      turn ^= 1;
    }
  }

  // Of a team within a warp: what its threads have read of shared memory may be overwritten.
  __device__ __forceinline__ void sync() const { __syncwarp(lanes()); }

 private:
  __device__ __forceinline__ unsigned lanes() const {
    return (~0u >> (kWarp - kLanes)) << threadIdx.x % kWarp / kLanes * kLanes;
  }
};

}  // namespace ws
