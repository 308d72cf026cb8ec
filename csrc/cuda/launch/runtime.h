// What the launches need of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

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
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010 ? kLargeBytes
                                                                           : kSmallBytes;
  }();
  return bytes;
}

template <class Args>
int run(const Work<Args>* work, int64_t count, int device, void* stream_handle, Allocate allocate,
        void* context) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  Launches<Args> launches(work, count);
  cudaError_t error = cudaSuccess;
  const int64_t bytes = launches.workspace_bytes();
  void* workspace = nullptr;
  if (bytes > 0 && allocate != nullptr) workspace = allocate(context, bytes);
  if (bytes > 0 && allocate == nullptr) error = cudaMallocAsync(&workspace, bytes, stream);
  if (error != cudaSuccess) return error;
  launches.start(parameter_bytes(), workspace,
                 [&](auto* kernel, int64_t blocks, int threads, auto& parameter) {
                   if (error != cudaSuccess) return;
                   if (blocks > kMaxBlocks) {
                     error = cudaErrorInvalidConfiguration;
                     return;
                   }
                   void* parameters[] = {const_cast<void*>(static_cast<const void*>(&parameter))};
                   cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                    dim3(threads), parameters, 0, stream);
                   error = cudaGetLastError();  // and not the launch's result: this clears it too
                 });
  if (bytes > 0 && allocate == nullptr) cudaFreeAsync(workspace, stream);
  return error;
}

}  // namespace ws
