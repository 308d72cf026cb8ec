// From an op's tensors to the kernels' arguments: check, allocate the results, describe the layout.
// Shared by the CPU and the CUDA host functions.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

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

// The same for lists of one length, all on one device. formulas: (eps, eps_mode, correction, center,
// scale) of each weight in a row.
std::vector<ForwardCall> prepare_forward_many(const std::vector<Tensor>& weights,
                                              const std::vector<std::optional<Tensor>>& gains,
                                              const std::vector<std::optional<Tensor>>& shifts,
                                              const std::vector<int64_t>& channel_dims,
                                              const std::vector<double>& formulas,
                                              std::optional<ScalarType> dtype);
std::vector<BackwardCall> prepare_backward_many(const std::vector<Tensor>& grads,
                                                const std::vector<Tensor>& weights,
                                                const std::vector<std::optional<Tensor>>& gains,
                                                const std::vector<int64_t>& channel_dims,
                                                const std::vector<double>& formulas, bool affine);

// The gradients of the weights; with `affine`, then those of the gains and those of the shifts.
std::vector<Tensor> gradients_of(const std::vector<BackwardCall>& calls, bool affine);

}  // namespace ws
