// From an op's tensors to the kernels' arguments: check, allocate the results, describe the layout.
// Shared by the CPU and the CUDA host functions.
#pragma once

#include "checks.h"

namespace ws {

// A call of a pass: its arguments, and the tensors that hold the memory to which they point.
template <class Args>
struct Call {
  Args args;
  Types types;
  Tensor operands[Args::kOperands];  // undefined where there is none
  std::optional<Tensor> vectors[Args::kVectors];
};

// An empty weight leaves shape.rows at 0: there is nothing to launch.
// The result is `out` where one is given, of that dtype; else a new tensor.
Call<Forward> prepare_forward(Tensor weight, std::optional<Tensor> gain,
                              std::optional<Tensor> shift, int64_t channel_dim,
                              const Numbers& numbers, std::optional<ScalarType> dtype,
                              std::optional<Tensor> out = {});

// With `affine`, gradients of gain and shift too. With `in_place`, that of the weight replaces `grad`.
Call<Backward> prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                                int64_t channel_dim, const Numbers& numbers, bool affine,
                                bool in_place = false);

Call<Norms> prepare_norms(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                          int64_t channel_dim, const Numbers& numbers, bool affine);

// operands: by Update's numbers. The new_gain and new_shift are those of the new out.
Call<Update> prepare_update(Tensor (&&operands)[Update::kOperands], std::optional<Tensor> gain,
                            std::optional<Tensor> new_gain, std::optional<Tensor> new_shift,
                            int64_t channel_dim, const Numbers& numbers, const Rule& rule);

}  // namespace ws
