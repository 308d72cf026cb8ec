// The forward kernels' host functions: of the ops, and of the C interface.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <utility>
#include <vector>

#include "../torch/arguments.h"
#include "forward.cuh"
#include "runtime.h"
#include "stream.h"

namespace ws {
namespace {

Tensor forward_cuda(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
                    int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                    bool center, double scale, std::optional<ScalarType> dtype) {
  const int32_t device = weight.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  ForwardCall call = prepare_forward(std::move(weight), std::move(gain), std::move(shift),
                                     channel_dim, eps, eps_mode, correction, center, scale, dtype);
  if (!is_empty(call.args.shape)) {
    check(launch(forward_plan(call.args, call.types), &call.args, current_stream(device)));
  }
  return call.out;
}

std::vector<Tensor> forward_many_cuda(std::vector<Tensor> weights,
                                      std::vector<std::optional<Tensor>> gains,
                                      std::vector<std::optional<Tensor>> shifts,
                                      std::vector<int64_t> channel_dims,
                                      std::vector<double> formulas,
                                      std::optional<ScalarType> dtype) {
  const int32_t device = weights.at(0).get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::vector<Tensor> outs;
  for (const ForwardCall& call :
       prepare_forward_many(weights, gains, shifts, channel_dims, formulas, dtype)) {
    if (!is_empty(call.args.shape)) {
      check(launch(forward_plan(call.args, call.types), &call.args, current_stream(device)));
    }
    outs.push_back(call.out);
  }
  return outs;
}

STABLE_TORCH_LIBRARY_IMPL(ws, CUDA, m) {
  m.impl("standardize", TORCH_BOX(&forward_cuda));
  m.impl("forward", TORCH_BOX(&forward_cuda));
  m.impl("standardize_many", TORCH_BOX(&forward_many_cuda));
  m.impl("forward_many", TORCH_BOX(&forward_many_cuda));
}

}  // namespace
}  // namespace ws

int ws_cuda_forward(const ws::Forward* args, ws::Types types, int device, void* stream) {
  if (ws::is_empty(args->shape)) return cudaSuccess;
  const ws::OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  return ws::launch(ws::forward_plan(*args, types), args, static_cast<cudaStream_t>(stream));
}

ws::Plan ws_cuda_forward_plan(const ws::Forward* args, ws::Types types) {
  return ws::forward_plan(*args, types);
}

const char* ws_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int ws_cuda_toolkit() { return CUDART_VERSION; }

#define WS_TEXT_OF(...) #__VA_ARGS__
#define WS_TEXT(...) WS_TEXT_OF(__VA_ARGS__)
const char* ws_cuda_architectures() { return WS_TEXT(__CUDA_ARCH_LIST__); }
