// From an op's tensors to the kernels' arguments: check, allocate the results, describe the layout.
// Shared by the CPU and the CUDA host functions.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "../standardize.h"

namespace ws {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct ForwardCall {
  Forward args;
  Types types;
  Tensor out;
  // Hold the memory that args points to where an input had to be copied.
  Tensor weight;
  std::optional<Tensor> gain, shift;
};

struct BackwardCall {
  Backward args;
  Types types;
  Tensor grad_weight;
  std::optional<Tensor> grad_gain, grad_shift;
  Tensor grad, weight;
  std::optional<Tensor> gain;
};

// An empty weight leaves shape.rows at 0: there is nothing to launch.
//
// Checks tersely and for memory safety alone: python/torch_ws/_check.py says what is wrong.
ForwardCall prepare_forward(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
                            int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                            bool center, double scale, std::optional<ScalarType> dtype);

// With `affine`, gradients of gain and shift too.
BackwardCall prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                              int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                              bool center, double scale, bool affine);

}  // namespace ws
