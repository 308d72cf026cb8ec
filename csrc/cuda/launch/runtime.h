// What the launches need of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "../rows/cluster.cuh"
#include "launch.h"

namespace ws {

// Makes a device the current one for its lifetime.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    switched_ = error_ == cudaSuccess && before_ != device;
    if (switched_) error_ = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (switched_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool switched_ = false;
  cudaError_t error_;
};

// Every chip that this is compiled for takes the large parameters; older drivers do not.
inline int parameter_bytes() {
  static const int bytes = [] {
    int driver = 0;
    const bool known = cudaDriverGetVersion(&driver) == cudaSuccess;
    return kLargeBytes <= 4096 || (known && driver >= 12010) ? kLargeBytes : kSmallBytes;
  }();
  return bytes;
}

// More blocks than 8 have to be allowed, by every kernel for itself.
inline cudaError_t allow_large_clusters(const void* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Blocks that a cluster of the device can have in a pass, a power of two. 1 where there are no clusters,
// also because the code is an older architecture's, compiled by the driver.
template <class Args>
int max_cluster(int device) {
  constexpr int kDevices = 64;              // that are asked once
  static std::atomic<int> known[kDevices];  // 0: not asked yet
  if (device < kDevices && known[device] != 0) return known[device];
  const auto* kernel = reinterpret_cast<const void*>(kernels_of(Args{}, kF32).cluster);
  cudaFuncAttributes attributes;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kMaxCluster);
  config.blockDim = dim3(256);  // of a cluster kernel
  int blocks = 0, found = 1;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90 &&
      allow_large_clusters(kernel) == cudaSuccess &&
      cudaOccupancyMaxPotentialClusterSize(&blocks, kernel, &config) == cudaSuccess) {
    while (found < kMaxCluster && 2 * found <= blocks) found *= 2;
  }
  cudaGetLastError();  // of what was refused
  if (device < kDevices) known[device] = found;
  return found;
}

template <class Args>
int run(const Work<Args>* work, int64_t count, int device, void* stream_handle, Allocate allocate,
        void* context) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  if (Args::kResults != 1 && parameter_bytes() < kLargeBytes) return cudaErrorInsufficientDriver;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  Launches<Args> launches(work, count, max_cluster<Args>(device));
  cudaError_t error = cudaSuccess;
  const int64_t bytes = launches.workspace_bytes();
  void* workspace = nullptr;
  if (bytes > 0 && allocate != nullptr) workspace = allocate(context, bytes);
  if (bytes > 0 && allocate == nullptr) error = cudaMallocAsync(&workspace, bytes, stream);
  if (error != cudaSuccess) return error;
  launches.start(parameter_bytes(), workspace,
                 [&](auto* kernel, int64_t blocks, int threads, auto& parameter, int cluster) {
                   if (error != cudaSuccess) return;
                   if (blocks > kMaxBlocks) {
                     error = cudaErrorInvalidConfiguration;
                     return;
                   }
                   void* parameters[] = {const_cast<void*>(static_cast<const void*>(&parameter))};
                   if (cluster > 8) allow_large_clusters(reinterpret_cast<const void*>(kernel));
                   cudaLaunchAttribute attribute{};
                   attribute.id = cudaLaunchAttributeClusterDimension;
                   attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
                   cudaLaunchConfig_t config{dim3(blocks), dim3(threads), 0,
                                             stream,       &attribute,    cluster > 1};
                   cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), parameters);
                   error = cudaGetLastError();  // and not the launch's result: this clears it too
                 });
  if (bytes > 0 && allocate == nullptr) cudaFreeAsync(workspace, stream);
  return error;
}

}  // namespace ws
