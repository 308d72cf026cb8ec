// The ops of the namespace ws, and their CPU host functions.
//
// ws::standardize is the public op. ws::forward and ws::backward compute the same without autograd;
// python/torch_ws/ops.py builds ws::standardize's derivatives from them.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>

#include "../cpu/parallel.h"
#include "arguments.h"

namespace ws {
namespace {

Tensor forward_cpu(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
                   int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                   bool center, double scale, std::optional<ScalarType> dtype) {
  ForwardCall call = prepare_forward(std::move(weight), std::move(gain), std::move(shift),
                                     channel_dim, eps, eps_mode, correction, center, scale, dtype);
  run_forward(call.types, call.args);
  return call.out;
}

Tensor backward_cpu(Tensor grad, Tensor weight, std::optional<Tensor> gain, int64_t channel_dim,
                    double eps, int64_t eps_mode, int64_t correction, bool center, double scale) {
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/false);
  run_backward(call.types, call.args);
  return call.grad_weight;
}

std::tuple<Tensor, Tensor, Tensor> backward_affine_cpu(Tensor grad, Tensor weight,
                                                       std::optional<Tensor> gain,
                                                       int64_t channel_dim, double eps,
                                                       int64_t eps_mode, int64_t correction,
                                                       bool center, double scale) {
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/true);
  run_backward(call.types, call.args);
  return {call.grad_weight, *call.grad_gain, *call.grad_shift};
}

STABLE_TORCH_LIBRARY(ws, m) {
  m.def(
      "standardize(Tensor weight, Tensor? gain=None, Tensor? shift=None, *, int channel_dim=0, "
      "float eps=1e-05, int eps_mode=0, int correction=0, bool center=True, float scale=1.0, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "forward(Tensor weight, Tensor? gain, Tensor? shift, int channel_dim, float eps, "
      "int eps_mode, int correction, bool center, float scale, ScalarType? dtype) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor weight, Tensor? gain, int channel_dim, float eps, "
      "int eps_mode, int correction, bool center, float scale) -> Tensor");
  // also the gradients of gain and shift
  m.def(
      "backward_affine(Tensor grad, Tensor weight, Tensor? gain, int channel_dim, float eps, "
      "int eps_mode, int correction, bool center, float scale) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ws, CPU, m) {
  m.impl("standardize", TORCH_BOX(&forward_cpu));
  m.impl("forward", TORCH_BOX(&forward_cpu));
  m.impl("backward", TORCH_BOX(&backward_cpu));
  m.impl("backward_affine", TORCH_BOX(&backward_affine_cpu));
}

}  // namespace
}  // namespace ws
