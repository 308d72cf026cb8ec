// From an op's tensors to the kernels' arguments: check, allocate the results, describe the layout.
// Shared by the CPU and the CUDA host functions.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "../standardize.h"

namespace ws {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A call of a pass: its arguments, and the tensors that hold the memory to which they point.
template <class Args>
struct Call {
  Args args;
  Types types;
  Tensor operands[Args::kOperands];
  std::optional<Tensor> vectors[Args::kVectors];
};

// An empty weight leaves shape.rows at 0: there is nothing to launch.
//
// Checks tersely and for memory safety alone: python/torch_ws/_check.py says what is wrong.
Call<Forward> prepare_forward(Tensor weight, std::optional<Tensor> gain,
                              std::optional<Tensor> shift, int64_t channel_dim,
                              const Numbers& numbers, std::optional<ScalarType> dtype);

// With `affine`, gradients of gain and shift too.
Call<Backward> prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                                int64_t channel_dim, const Numbers& numbers, bool affine);

// Number i of those of a list op, where (eps, eps_mode, correction, center, scale) of each weight
// follow each other.
Numbers numbers_of(const std::vector<double>& formulas, size_t i);

// The lists of such an op, as long as its weights, which are all on one device.
void check_lists(const std::vector<Tensor>& weights, std::initializer_list<size_t> lengths,
                 const std::vector<double>& formulas);

}  // namespace ws
