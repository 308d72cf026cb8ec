// Checks of an op's arguments one by one: tersely, and for memory safety alone.
// python/torch_ws/_check.py says what is wrong.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "../layout.h"

namespace ws {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

View view_of(const Tensor& tensor);
bool same_sizes(const Tensor& a, const Tensor& b);
Types types_of(ScalarType weight, ScalarType out);
Types update_types_of(ScalarType weight, ScalarType out, ScalarType grad);

// All elements must lie in the tensor's storage, which others can free or shrink at any time
// (untyped_storage().resize_). Without memory a gain's pointer is null, as if there were no gain.
void check_memory(const Tensor& tensor, const char* name);

// From 0 on.
int64_t checked_channel_dim(const Tensor& weight, int64_t channel_dim);
Formula checked_formula(const Tensor& weight, int64_t channel_dim, const Numbers& numbers);

// gain or shift [rows], contiguous.
std::optional<Tensor> checked_vector(std::optional<Tensor> vector, const char* name,
                                     const Tensor& weight, int64_t rows);

// A float32 tensor of one number on the weight's device; null without one.
const float* checked_number(const std::optional<Tensor>& number, const char* name,
                            const Tensor& weight);

// Adam's step, of a tensor on the weight's device, or on the CPU: that is read now.
void set_step(Rule& rule, const Tensor& step, const Tensor& weight);

// From (adam, lr, weight_decay, momentum or beta1, dampening or beta2, eps, nesterov, decoupled,
// maximize, clip_eps).
Rule checked_rule(const std::vector<double>& numbers);

// A weight has one state with SGD's momentum, else none; with Adam 2, or 3 for amsgrad, and a step.
void check_states(const Rule& rule, size_t weights, size_t states, size_t steps);

// flags: 1 for is_first, 2 for is_true.
Rule with_flags(Rule rule, int64_t flags, double clip);

// Number i of those of a list op, where (eps, eps_mode, correction, center, scale) of each weight
// follow each other.
Numbers numbers_of(const std::vector<double>& formulas, size_t i);

// The lists of such an op, as long as its weights, which are all on one device.
void check_lists(const std::vector<Tensor>& weights, std::initializer_list<size_t> lengths,
                 const std::vector<double>& formulas);

}  // namespace ws
