// The ops of the namespace ws, and their registration for the CPU; csrc/cuda/ops.cpp has CUDA's.
//
// ws::standardize is the public op. ws::forward and ws::backward compute the same without autograd;
// python/torch_ws/core/autograd.py builds ws::standardize's derivatives from them.
#include <torch/csrc/stable/library.h>

#include "../cpu/parallel.h"
#include "host.h"

namespace ws {
namespace {

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
  // into outs, whose dtypes choose the results'; whoever calls it counts their versions
  m.def(
      "forward_into(Tensor(a!)[] outs, Tensor[] weights, Tensor?[] gains, Tensor?[] shifts, "
      "int[] channel_dims, float[] formulas) -> ()");
  // the gradients of all weights; with affine, then those of all gains and those of all shifts
  m.def(
      "backward_many(Tensor[] grads, Tensor[] weights, Tensor?[] gains, int[] channel_dims, "
      "float[] formulas, bool affine) -> Tensor[]");
  // the gradients of the weights in place of grads, which nobody else may have; the others as above
  m.def(
      "backward_in_place(Tensor(a!)[] grads, Tensor[] weights, Tensor?[] gains, "
      "int[] channel_dims, float[] formulas, bool affine) -> Tensor[]");
  // of the rows of those gradients of the weights, the squared norms; with affine, then as above
  m.def(
      "norms_many(Tensor[] grads, Tensor[] weights, Tensor?[] gains, int[] channel_dims, "
      "float[] formulas, bool affine) -> Tensor[]");
  // A step of an optimizer (csrc/update.h) and the next outs. states: those of each weight in a row.
  // rule: (adam, lr, weight_decay, momentum or beta1, dampening or beta2, eps, nesterov, decoupled,
  // maximize, clip_eps). flags: 1 if there is no momentum yet, 2 if grad is the weight's own.
  m.def(
      "update_many(Tensor(a!)[] outs, Tensor(b!)[] weights, Tensor(c!)[] states, Tensor[] grads, "
      "Tensor?[] gains, Tensor?[] new_gains, Tensor?[] new_shifts, Tensor?[] factors, "
      "int[] channel_dims, float[] formulas, float[] rule, int[] flags, float[] clips, "
      "Tensor[] steps, Tensor? lr, Tensor? grad_scale, Tensor? found_inf) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ws, CPU, m) {
  m.impl("standardize", TORCH_BOX(&forward<run_on_cpu>));
  m.impl("forward", TORCH_BOX(&forward<run_on_cpu>));
  m.impl("backward", TORCH_BOX(&backward<run_on_cpu>));
  m.impl("backward_affine", TORCH_BOX(&backward_affine<run_on_cpu>));
  m.impl("standardize_many", TORCH_BOX(&forward_many<run_on_cpu>));
  m.impl("forward_many", TORCH_BOX(&forward_many<run_on_cpu>));
  m.impl("forward_into", TORCH_BOX(&forward_into<run_on_cpu>));
  m.impl("backward_many", TORCH_BOX(&backward_many<run_on_cpu>));
  m.impl("backward_in_place", TORCH_BOX(&backward_in_place<run_on_cpu>));
  m.impl("norms_many", TORCH_BOX(&norms_many<run_on_cpu>));
  m.impl("update_many", TORCH_BOX(&update_many<run_on_cpu>));
}

}  // namespace
}  // namespace ws
