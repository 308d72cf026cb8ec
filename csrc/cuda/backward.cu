// The backward kernels' host functions: of the ops, and of the C interface.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>
#include <vector>

#include "../torch/arguments.h"
#include "backward.cuh"
#include "runtime.h"
#include "stream.h"

namespace ws {
namespace {

Tensor backward_cuda(Tensor grad, Tensor weight, std::optional<Tensor> gain, int64_t channel_dim,
                     double eps, int64_t eps_mode, int64_t correction, bool center, double scale) {
  const int32_t device = weight.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/false);
  if (!is_empty(call.args.shape)) {
    check(launch(backward_plan(call.args, call.types), &call.args, current_stream(device)));
  }
  return call.grad_weight;
}

std::tuple<Tensor, Tensor, Tensor> backward_affine_cuda(Tensor grad, Tensor weight,
                                                        std::optional<Tensor> gain,
                                                        int64_t channel_dim, double eps,
                                                        int64_t eps_mode, int64_t correction,
                                                        bool center, double scale) {
  const int32_t device = weight.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/true);
  if (!is_empty(call.args.shape)) {
    check(launch(backward_plan(call.args, call.types), &call.args, current_stream(device)));
  }
  return {call.grad_weight, *call.grad_gain, *call.grad_shift};
}

std::vector<Tensor> backward_many_cuda(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                       std::vector<std::optional<Tensor>> gains,
                                       std::vector<int64_t> channel_dims,
                                       std::vector<double> formulas, bool affine) {
  const int32_t device = weights.at(0).get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const std::vector<BackwardCall> calls =
      prepare_backward_many(grads, weights, gains, channel_dims, formulas, affine);
  for (const BackwardCall& call : calls) {
    if (is_empty(call.args.shape)) continue;
    check(launch(backward_plan(call.args, call.types), &call.args, current_stream(device)));
  }
  return gradients_of(calls, affine);
}

STABLE_TORCH_LIBRARY_IMPL(ws, CUDA, m) {
  m.impl("backward", TORCH_BOX(&backward_cuda));
  m.impl("backward_affine", TORCH_BOX(&backward_affine_cuda));
  m.impl("backward_many", TORCH_BOX(&backward_many_cuda));
}

}  // namespace
}  // namespace ws

int ws_cuda_backward(const ws::Backward* args, ws::Types types, int device, void* stream) {
  if (ws::is_empty(args->shape)) return cudaSuccess;
  const ws::OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  return ws::launch(ws::backward_plan(*args, types), args, static_cast<cudaStream_t>(stream));
}

ws::Plan ws_cuda_backward_plan(const ws::Backward* args, ws::Types types) {
  return ws::backward_plan(*args, types);
}
