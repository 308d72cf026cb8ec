// Many weights in one launch: their descriptors travel as the kernel's parameter, by value, so that
// there is nothing to copy to the device and CUDA graphs keep them.
#pragma once

#include <cstdint>

#include "../../standardize.h"

namespace ws {

// The sizes of a kernel's parameter: for a few weights, small because a launch copies all of it; and
// what CUDA allows, from toolkit and driver 12.1 on.
constexpr int kSmallBytes = 1024;
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ < 1201
constexpr int kLargeBytes = 4096;
#else
constexpr int kLargeBytes = 32764;
#endif

template <class Args>  // of a pass
struct Entry {
  Args args;
  int16_t tier;  // of the launch table
  int16_t types;
  int32_t rows;  // that a block works on
};

template <class Args, int kBytes>
struct Batch {
  static constexpr int kCapacity =
      (kBytes - static_cast<int>(alignof(Entry<Args>))) / (sizeof(Entry<Args>) + sizeof(uint32_t));
  Entry<Args> entries[kCapacity];
  uint32_t first_block[kCapacity];  // of each entry, ascending from 0
  int32_t count;

  // The entry that a block works on: the last that does not start after it.
  __device__ __forceinline__ int entry_of(uint32_t block) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_block[middle] <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
  // The first of the rows that a block of entry number i works on.
  __device__ __forceinline__ int64_t first_row(int i) const {
    return static_cast<int64_t>(blockIdx.x - first_block[i]) * entries[i].rows;
  }
};

// The launches of split rows; in the place of kApply, a pass that updates its weight has kUpdate.
enum class Stage { kMoments, kUpdate, kApply };

// One weight whose rows are shared by blocks, of a cluster or not. Split rows take a launch for the
// moments of every chunk of columns, then one that combines a row's and applies them.
template <class Args>
struct Split {
  Args args;
  void* moments;  // [rows, chunks], of split rows
  int64_t chunk_cols;
  int32_t chunks;  // of a row
  Types types;

  __device__ int64_t row() const { return blockIdx.x / chunks; }
  __device__ int64_t begin() const { return blockIdx.x % chunks * chunk_cols; }
  __device__ int64_t end() const {
    const int64_t end = begin() + chunk_cols;
    return end < args.shape.cols ? end : args.shape.cols;
  }
  __device__ int64_t cols_of(int chunk) const {
    const int64_t left = args.shape.cols - chunk * chunk_cols;
    return left < chunk_cols ? left : chunk_cols;
  }
};

// Blocks that keep all multiprocessors busy: four of 256 threads on each of 132. Rows are not split into
// more than that takes, because each of a row's blocks combines the moments of all of them.
constexpr int kMaxChunks = 4 * 132;

}  // namespace ws
