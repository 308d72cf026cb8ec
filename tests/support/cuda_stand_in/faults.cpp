// Kernels with the faults that the stand-in has to notice, and one without.
#include "stand_in.h"

namespace {

__global__ void sound(int* sums) {  // [64]
  __shared__ int total[2];
  int sum = threadIdx.x;
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) total[threadIdx.x / 32] = sum;
  __syncthreads();
  sums[threadIdx.x] = total[0] + total[1];
}

__global__ void left_before_barrier(int*) {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void barrier_in_branch(int*) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void left_before_shuffle(int* sums) {
  if (threadIdx.x == 3) return;
  sums[threadIdx.x] = __shfl_xor_sync(~0u, 1, 16);
}

__global__ void barrier_against_shuffle(int* sums) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    sums[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
  }
}

__global__ void different_shuffles(int* sums) {
  sums[threadIdx.x] = __shfl_xor_sync(~0u, 1, threadIdx.x % 2 == 0 ? 2 : 4);
}

__global__ void lane_outside_mask(int* sums) { sums[threadIdx.x] = __shfl_xor_sync(0xffu, 1, 8); }

__global__ void left_before_cluster_barrier(int*) {
  if (blockIdx.x == 1) return;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

__global__ void different_barriers(int*) {
  if (threadIdx.x >= 32) return __syncthreads();
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

// Block 0 runs on first, and has left when block 1 reads.
__global__ void left_before_others_have_read(int* sums) {
  __shared__ int value;
  value = blockIdx.x;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  if (blockIdx.x == 1) sums[0] = *static_cast<int*>(__cluster_map_shared_rank(&value, 0));
}

__global__ void sound_cluster(int* sums) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 5 + blockIdx.x;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const int other = *static_cast<int*>(__cluster_map_shared_rank(&value, 1 - blockIdx.x));
  if (threadIdx.x / 32 == blockIdx.x) sums[threadIdx.x] = other;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

__global__ void misaligned(int* sums) { *reinterpret_cast<uint4*>(sums + 1) = uint4{1, 2, 3, 4}; }

}  // namespace

#define NAMED(kernel) {#kernel, kernel}
const struct {
  const char* name;
  void (*kernel)(int*);
} kKernels[] = {
    NAMED(sound),
    NAMED(left_before_barrier),
    NAMED(barrier_in_branch),
    NAMED(left_before_shuffle),
    NAMED(barrier_against_shuffle),
    NAMED(different_shuffles),
    NAMED(lane_outside_mask),
    NAMED(misaligned),
    NAMED(sound_cluster),
    NAMED(left_before_cluster_barrier),
    NAMED(different_barriers),
    NAMED(left_before_others_have_read),
};

// Runs one with two blocks of 64 threads, or a cluster of both; returns what went wrong, or "".
extern "C" const char* run_named(const char* name, int* sums, int cluster) {  // [64]
  static std::string error;
  for (const auto& entry : kKernels) {
    if (strcmp(entry.name, name) != 0) continue;
    error = stand_in::Launch().run(2, 64, cluster, [&] { entry.kernel(sums); });
    return error.c_str();
  }
  return "no such kernel";
}
