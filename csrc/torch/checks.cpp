#include "checks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cfloat>
#include <utility>

namespace ws {

View view_of(const Tensor& tensor) {
  return {tensor.dim(), tensor.sizes().data(), tensor.strides().data()};
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), other = b.sizes();
  if (sizes.size() != other.size()) return false;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != other[d]) return false;
  }
  return true;
}

Types types_of(ScalarType weight, ScalarType out) {
  if (weight == ScalarType::Double && out == weight) return kF64;
  if (weight == ScalarType::Float && out == weight) return kF32;
  if (weight == ScalarType::Half && out == weight) return kF16;
  if (weight == ScalarType::BFloat16 && out == weight) return kBF16;
  if (weight == ScalarType::Float && out == ScalarType::Half) return kF32ToF16;
  if (weight == ScalarType::Float && out == ScalarType::BFloat16) return kF32ToBF16;
  STD_TORCH_CHECK(false, "ws: no kernel for this weight dtype and result dtype");
}

Types update_types_of(ScalarType weight, ScalarType out, ScalarType grad) {
  const Types types = types_of(weight, out);
  STD_TORCH_CHECK(types != kF16 && types != kBF16, "ws: no update of weights of this dtype");
  if (grad == out) return types;
  STD_TORCH_CHECK(grad == weight, "ws: grad must have its out's or its weight's dtype");
  return types == kF32ToF16 ? kF32ToF16Sum : kF32ToBF16Sum;
}

void check_memory(const Tensor& tensor, const char* name) {
  const View view = view_of(tensor);
  int64_t last = tensor.storage_offset();
  for (int64_t d = 0; d < view.dim; ++d) {
    if (view.sizes[d] == 0) return;
    last += (view.sizes[d] - 1) * view.strides[d];
  }
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  const bool held = last < bytes / static_cast<int64_t>(tensor.element_size());
  STD_TORCH_CHECK(held && tensor.const_data_ptr() != nullptr, "ws: ", name,
                  " must have memory for its elements");
}

int64_t checked_channel_dim(const Tensor& weight, int64_t channel_dim) {
  const int64_t dim = weight.dim();
  STD_TORCH_CHECK(2 <= dim && dim <= kMaxDims, "ws: weight must have 2 to 64 dimensions");
  STD_TORCH_CHECK(-dim <= channel_dim && channel_dim < dim, "ws: channel_dim is out of range");
  return channel_dim < 0 ? channel_dim + dim : channel_dim;
}

Formula checked_formula(const Tensor& weight, int64_t channel_dim, const Numbers& numbers) {
  const auto& [eps, eps_mode, correction, center, scale] = numbers;
  // finite in the type of the statistics
  const double largest = weight.scalar_type() == ScalarType::Double ? DBL_MAX : FLT_MAX;
  STD_TORCH_CHECK(0 <= eps_mode && eps_mode <= 2, "ws: eps_mode must be 0, 1 or 2");
  STD_TORCH_CHECK(0 <= eps && eps <= largest, "ws: eps must be finite and not negative");
  STD_TORCH_CHECK(-largest <= scale && scale <= largest, "ws: scale must be finite");
  const int64_t numel = weight.numel();
  STD_TORCH_CHECK(correction >= 0 && (numel == 0 || correction < numel / weight.size(channel_dim)),
                  "ws: correction must be smaller than the elements of a channel");
  return {eps, scale, correction, static_cast<EpsMode>(eps_mode), center};
}

std::optional<Tensor> checked_vector(std::optional<Tensor> vector, const char* name,
                                     const Tensor& weight, int64_t rows) {
  if (!vector) return vector;
  STD_TORCH_CHECK(
      vector->dim() == 1 && vector->size(0) == rows &&
          vector->scalar_type() == weight.scalar_type() && vector->device() == weight.device(),
      "ws: ", name, " must have one value a channel, on the weight's device and in its dtype");
  check_memory(*vector, name);
  return vector->is_contiguous() ? vector : torch::stable::contiguous(*vector);
}

namespace {

// An eps_mode, correction or center of the list ops, where all numbers travel as floats.
int64_t whole(double number, const char* name) {
  constexpr double kExact = int64_t{1} << 53;  // up to here, a double holds every whole number
  STD_TORCH_CHECK(-kExact <= number && number <= kExact &&
                      number == static_cast<double>(static_cast<int64_t>(number)),
                  "ws: ", name, " must be a whole number");
  return static_cast<int64_t>(number);
}

bool truth(double number, const char* name) {
  STD_TORCH_CHECK(number == 0 || number == 1, "ws: ", name, " must be 0 or 1");
  return number == 1;
}

}  // namespace

const float* checked_number(const std::optional<Tensor>& number, const char* name,
                            const Tensor& weight) {
  if (!number) return nullptr;
  STD_TORCH_CHECK(number->numel() == 1 && number->scalar_type() == ScalarType::Float &&
                      number->device() == weight.device(),
                  "ws: ", name, " must be one float32 number on the weight's device");
  check_memory(*number, name);
  return static_cast<const float*>(number->const_data_ptr());
}

void set_step(Rule& rule, const Tensor& step, const Tensor& weight) {
  const float* number = checked_number(step, "step", step.is_cpu() ? step : weight);
  if (step.is_cpu()) {
    rule.step = *number;
  } else {
    rule.step_at = number;
  }
}

Rule checked_rule(const std::vector<double>& numbers) {
  STD_TORCH_CHECK(numbers.size() == 10, "ws: rule must be 10 numbers");
  for (double number : numbers) {
    STD_TORCH_CHECK(-DBL_MAX <= number && number <= DBL_MAX, "ws: rule must be finite");
  }
  Rule rule{};
  rule.adam = truth(numbers[0], "adam");
  rule.lr = numbers[1];
  rule.weight_decay = numbers[2];
  (rule.adam ? rule.beta1 : rule.momentum) = numbers[3];
  (rule.adam ? rule.beta2 : rule.dampening) = numbers[4];
  rule.eps = numbers[5];
  rule.nesterov = truth(numbers[6], "nesterov");
  rule.decoupled = truth(numbers[7], "decoupled");
  rule.maximize = truth(numbers[8], "maximize");
  rule.clip_eps = numbers[9];
  return rule;
}

void check_states(const Rule& rule, size_t weights, size_t states, size_t steps) {
  const bool fits = rule.adam ? states == 2 * weights || states == 3 * weights
                              : states == (rule.momentum != 0 ? weights : 0);
  STD_TORCH_CHECK(fits && steps == (rule.adam ? weights : 0),
                  "ws: states and steps must be as many as the rule has");
}

Rule with_flags(Rule rule, int64_t flags, double clip) {
  STD_TORCH_CHECK(0 <= flags && flags <= 3, "ws: flags must be 0 to 3");
  STD_TORCH_CHECK(0 <= clip && clip <= DBL_MAX, "ws: clip must be finite and not negative");
  rule.is_first = flags & 1;
  rule.is_true = flags & 2;
  rule.clip = clip;
  return rule;
}

Numbers numbers_of(const std::vector<double>& formulas, size_t i) {
  const double* numbers = &formulas[5 * i];
  return {numbers[0], whole(numbers[1], "eps_mode"), whole(numbers[2], "correction"),
          truth(numbers[3], "center"), numbers[4]};
}

void check_lists(const std::vector<Tensor>& weights, std::initializer_list<size_t> lengths,
                 const std::vector<double>& formulas) {
  for (size_t length : lengths) {
    STD_TORCH_CHECK(length == weights.size(), "ws: lists must be as long as weights");
  }
  STD_TORCH_CHECK(formulas.size() == 5 * weights.size(), "ws: formulas must be 5 numbers a weight");
  for (const Tensor& weight : weights) {
    STD_TORCH_CHECK(weight.device() == weights[0].device(), "ws: weights must be on one device");
  }
}

}  // namespace ws
