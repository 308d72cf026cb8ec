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
  // the gradients of all weights; with affine, then those of all gains and those of all shifts
  m.def(
      "backward_many(Tensor[] grads, Tensor[] weights, Tensor?[] gains, int[] channel_dims, "
      "float[] formulas, bool affine) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(ws, CPU, m) {
  m.impl("standardize", TORCH_BOX(&forward<run_on_cpu>));
  m.impl("forward", TORCH_BOX(&forward<run_on_cpu>));
  m.impl("backward", TORCH_BOX(&backward<run_on_cpu>));
  m.impl("backward_affine", TORCH_BOX(&backward_affine<run_on_cpu>));
  m.impl("standardize_many", TORCH_BOX(&forward_many<run_on_cpu>));
  m.impl("forward_many", TORCH_BOX(&forward_many<run_on_cpu>));
  m.impl("backward_many", TORCH_BOX(&backward_many<run_on_cpu>));
}

}  // namespace
}  // namespace ws
