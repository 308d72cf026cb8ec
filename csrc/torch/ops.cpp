// The ops of the namespace ws, and their CPU host functions.
//
// ws::standardize is the public op. ws::forward and ws::backward compute the same without autograd;
// python/torch_ws/ops.py builds ws::standardize's derivatives from them.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/parallel.h"
#include "arguments.h"

namespace ws {
namespace {

Tensor forward_cpu(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
                   int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                   bool center, double scale, std::optional<ScalarType> dtype) {
  ForwardCall call = prepare_forward(std::move(weight), std::move(gain), std::move(shift),
                                     channel_dim, eps, eps_mode, correction, center, scale, dtype);
  const Work<Forward> work{call.types, &call.args};
  run_forward(&work, 1);
  return call.out;
}

Tensor backward_cpu(Tensor grad, Tensor weight, std::optional<Tensor> gain, int64_t channel_dim,
                    double eps, int64_t eps_mode, int64_t correction, bool center, double scale) {
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/false);
  const Work<Backward> work{call.types, &call.args};
  run_backward(&work, 1);
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
  const Work<Backward> work{call.types, &call.args};
  run_backward(&work, 1);
  return {call.grad_weight, *call.grad_gain, *call.grad_shift};
}

std::vector<Tensor> forward_many_cpu(std::vector<Tensor> weights,
                                     std::vector<std::optional<Tensor>> gains,
                                     std::vector<std::optional<Tensor>> shifts,
                                     std::vector<int64_t> channel_dims,
                                     std::vector<double> formulas,
                                     std::optional<ScalarType> dtype) {
  const std::vector<ForwardCall> calls =
      prepare_forward_many(weights, gains, shifts, channel_dims, formulas, dtype);
  std::vector<Work<Forward>> work;
  std::vector<Tensor> outs;
  for (const ForwardCall& call : calls) {
    work.push_back({call.types, &call.args});
    outs.push_back(call.out);
  }
  run_forward(work.data(), work.size());
  return outs;
}

std::vector<Tensor> backward_many_cpu(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                      std::vector<std::optional<Tensor>> gains,
                                      std::vector<int64_t> channel_dims,
                                      std::vector<double> formulas, bool affine) {
  const std::vector<BackwardCall> calls =
      prepare_backward_many(grads, weights, gains, channel_dims, formulas, affine);
  std::vector<Work<Backward>> work;
  for (const BackwardCall& call : calls) work.push_back({call.types, &call.args});
  run_backward(work.data(), work.size());
  return gradients_of(calls, affine);
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
  // The list forms. formulas: (eps, eps_mode, correction, center, scale) of each weight in a row.
  m.def(
      "standardize_many(Tensor[] weights, Tensor?[] gains, Tensor?[] shifts, int[] channel_dims, "
      "float[] formulas, ScalarType? dtype=None) -> Tensor[]");
  m.def(
      "forward_many(Tensor[] weights, Tensor?[] gains, Tensor?[] shifts, int[] channel_dims, "
      "float[] formulas, ScalarType? dtype) -> Tensor[]");
  // the gradients of all weights; with affine, then those of all gains and those of all shifts
  m.def(
      "backward_many(Tensor[] grads, Tensor[] weights, Tensor?[] gains, int[] channel_dims, "
      "float[] formulas, bool affine) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(ws, CPU, m) {
  m.impl("standardize", TORCH_BOX(&forward_cpu));
  m.impl("forward", TORCH_BOX(&forward_cpu));
  m.impl("backward", TORCH_BOX(&backward_cpu));
  m.impl("backward_affine", TORCH_BOX(&backward_affine_cpu));
  m.impl("standardize_many", TORCH_BOX(&forward_many_cpu));
  m.impl("forward_many", TORCH_BOX(&forward_many_cpu));
  m.impl("backward_many", TORCH_BOX(&backward_many_cpu));
}

}  // namespace
}  // namespace ws
