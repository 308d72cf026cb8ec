// What the launches need of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include "api.h"

namespace ws {

inline cudaError_t launch(const Plan& plan, const void* args, cudaStream_t stream) {
  void* arguments[] = {const_cast<void*>(args)};
  const dim3 blocks(plan.blocks[0], plan.blocks[1]);
  cudaLaunchKernel(plan.kernel, blocks, dim3(plan.threads), arguments, 0, stream);
  return cudaGetLastError();  // and not the launch's own result: this one clears it too
}

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

}  // namespace ws
