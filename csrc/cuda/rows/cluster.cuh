// A row shared by a cluster: blocks that run at the same time and read each other's shared memory, on
// chips from 9.0 on. The row is read once, where blocks of their own would need a second launch.
#pragma once

#include "team.cuh"

namespace ws {

constexpr int kMaxCluster = 16;  // blocks that a chip can have in one; every chip with clusters: 8

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define WS_CLUSTERS  // Others have no such instructions.

// A block of kTeam threads as a part of its cluster.
template <int kTeam>
struct ClusterTeam : Team<kTeam> {
  int turn = 0;

  // Adds up the values of all threads of the cluster; all of them get bitwise the same sums. Every block
  // adds up all blocks' sums, each in a lane, in the same order. Calls take turns, as a block's do.
  template <class A, int kCount>
  __device__ __forceinline__ void sum(A (&values)[kCount]) {
    Team<kTeam>::sum(values);
    __shared__ A partial[2][kCount];
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) partial[turn][k] = values[k];
    }
    wait();
    const unsigned lane = threadIdx.x % kMaxCluster;
    const bool has = lane < __clusterSizeInBlocks();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const void* const at = __cluster_map_shared_rank(&partial[turn][k], has ? lane : 0);
      values[k] = has ? *static_cast<const A*>(at) : A(0);
    }
    sum_lanes<kMaxCluster>(values, ~0u);
    turn ^= 1;
  }

  // Waits for the whole cluster. Also to be called last: what a block has left in its shared memory is
  // gone when it ends, and others may not have read it yet.
  __device__ __forceinline__ void wait() {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }
};

#endif

}  // namespace ws
