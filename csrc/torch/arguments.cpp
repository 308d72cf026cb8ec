#include "arguments.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cfloat>
#include <exception>
#include <initializer_list>
#include <utility>

#include "../layout.h"

namespace ws {
namespace {

View view_of(const Tensor& tensor) {
  return {tensor.dim(), tensor.sizes().data(), tensor.strides().data()};
}

// An uninitialized tensor of `like`'s shape and device, and of its strides where they are dense.
//
// PyTorch's C interface says that it failed and not why: after it, allocate_again() in
// python/torch_ws/_check.py has PyTorch say it, where memory has run out for instance.
Tensor empty_like(const Tensor& like, ScalarType dtype) {
  const View view = view_of(like);
  try {
    if (!is_dense(view)) {
      // PyTorch's own choice of strides, which the op's fake implementation makes too
      return torch::stable::to(torch::stable::empty_like(like), dtype);
    }
    AtenTensorHandle handle;
    int32_t device_type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(view.dim, view.sizes, view.strides,
                                                    static_cast<int32_t>(dtype), device_type,
                                                    like.get_device_index(), &handle));
    return Tensor(handle);
  } catch (const std::exception&) {
    STD_TORCH_CHECK(false, "ws: PyTorch could not allocate a tensor of ", like.numel(),
                    " elements");
  }
}

Tensor copy_with_strides_of(const Tensor& result, const Tensor& source) {
  Tensor copy = empty_like(result, source.scalar_type());
  return torch::stable::copy_(copy, source);
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

// All elements must lie in the tensor's storage, which others can free or shrink at any time
// (untyped_storage().resize_). Without memory a gain's pointer is null, as if there were no gain.
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

Formula checked_formula(const Tensor& weight, int64_t channel_dim, double eps, int64_t eps_mode,
                        int64_t correction, bool center, double scale) {
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

// An eps_mode, correction or center of the list ops, where all numbers travel as floats.
int64_t whole(double number, const char* name) {
  constexpr double kExact = int64_t{1} << 53;  // up to here, a double holds every whole number
  STD_TORCH_CHECK(-kExact <= number && number <= kExact &&
                      number == static_cast<double>(static_cast<int64_t>(number)),
                  "ws: ", name, " must be a whole number");
  return static_cast<int64_t>(number);
}

bool truth(double number) {
  STD_TORCH_CHECK(number == 0 || number == 1, "ws: center must be 0 or 1");
  return number == 1;
}

// gain or shift [rows], contiguous.
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

const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// A gradient of gain or shift [rows]; nothing is written to it for an empty weight.
Tensor new_vector(const Tensor& weight, int64_t rows) {
  return weight.numel() > 0 ? torch::stable::new_empty(weight, {rows})
                            : torch::stable::new_zeros(weight, {rows});
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

}  // namespace

ForwardCall prepare_forward(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
                            int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                            bool center, double scale, std::optional<ScalarType> dtype) {
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  ForwardCall call{};
  call.args.formula =
      checked_formula(weight, channel_dim, eps, eps_mode, correction, center, scale);
  const ScalarType out_dtype = dtype.value_or(weight.scalar_type());
  call.types = types_of(weight.scalar_type(), out_dtype);
  check_memory(weight, "weight");
  call.gain = checked_vector(std::move(gain), "gain", weight, rows);
  call.shift = checked_vector(std::move(shift), "shift", weight, rows);

  call.out = empty_like(weight, out_dtype);
  if (weight.numel() == 0) return call;
  Strides strides[2];
  const View views[2] = {view_of(call.out), view_of(weight)};
  if (match_layout(views, 2, channel_dim, &call.args.shape, strides) != 2) {
    weight = copy_with_strides_of(call.out, weight);
    const View copied[2] = {view_of(call.out), view_of(weight)};
    match_layout(copied, 2, channel_dim, &call.args.shape, strides);
  }
  call.weight = std::move(weight);
  call.args.weight = call.weight.const_data_ptr();
  call.args.gain = data_or_null(call.gain);
  call.args.shift = data_or_null(call.shift);
  call.args.out = call.out.mutable_data_ptr();
  call.args.out_strides = strides[0];
  call.args.weight_strides = strides[1];
  return call;
}

BackwardCall prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                              int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction,
                              bool center, double scale, bool affine) {
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  BackwardCall call{};
  call.args.formula =
      checked_formula(weight, channel_dim, eps, eps_mode, correction, center, scale);
  STD_TORCH_CHECK(same_sizes(grad, weight) && grad.device() == weight.device(),
                  "ws: grad must have the weight's shape and device");
  call.types = types_of(weight.scalar_type(), grad.scalar_type());
  check_memory(grad, "grad");
  check_memory(weight, "weight");
  call.gain = checked_vector(std::move(gain), "gain", weight, rows);

  call.grad_weight = empty_like(weight, weight.scalar_type());
  if (affine) {
    call.grad_gain = new_vector(weight, rows);
    call.grad_shift = new_vector(weight, rows);
    call.args.grad_gain = call.grad_gain->mutable_data_ptr();
    call.args.grad_shift = call.grad_shift->mutable_data_ptr();
  }
  if (weight.numel() == 0) return call;
  Strides strides[3];
  for (int fitting = 0; fitting != 3;) {
    const View views[3] = {view_of(call.grad_weight), view_of(weight), view_of(grad)};
    fitting = match_layout(views, 3, channel_dim, &call.args.shape, strides);
    if (fitting < 3) {
      Tensor& copied = fitting == 1 ? weight : grad;
      copied = copy_with_strides_of(call.grad_weight, copied);
    }
  }
  call.grad = std::move(grad);
  call.weight = std::move(weight);
  call.args.grad = call.grad.const_data_ptr();
  call.args.weight = call.weight.const_data_ptr();
  call.args.gain = data_or_null(call.gain);
  call.args.grad_weight = call.grad_weight.mutable_data_ptr();
  call.args.grad_weight_strides = strides[0];
  call.args.weight_strides = strides[1];
  call.args.grad_strides = strides[2];
  return call;
}

std::vector<ForwardCall> prepare_forward_many(const std::vector<Tensor>& weights,
                                              const std::vector<std::optional<Tensor>>& gains,
                                              const std::vector<std::optional<Tensor>>& shifts,
                                              const std::vector<int64_t>& channel_dims,
                                              const std::vector<double>& formulas,
                                              std::optional<ScalarType> dtype) {
  check_lists(weights, {gains.size(), shifts.size(), channel_dims.size()}, formulas);
  std::vector<ForwardCall> calls;
  calls.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double* f = &formulas[5 * i];
    calls.push_back(prepare_forward(weights[i], gains[i], shifts[i], channel_dims[i], f[0],
                                    whole(f[1], "eps_mode"), whole(f[2], "correction"), truth(f[3]),
                                    f[4], dtype));
  }
  return calls;
}

std::vector<BackwardCall> prepare_backward_many(const std::vector<Tensor>& grads,
                                                const std::vector<Tensor>& weights,
                                                const std::vector<std::optional<Tensor>>& gains,
                                                const std::vector<int64_t>& channel_dims,
                                                const std::vector<double>& formulas, bool affine) {
  check_lists(weights, {grads.size(), gains.size(), channel_dims.size()}, formulas);
  std::vector<BackwardCall> calls;
  calls.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double* f = &formulas[5 * i];
    calls.push_back(prepare_backward(grads[i], weights[i], gains[i], channel_dims[i], f[0],
                                     whole(f[1], "eps_mode"), whole(f[2], "correction"),
                                     truth(f[3]), f[4], affine));
  }
  return calls;
}

std::vector<Tensor> gradients_of(const std::vector<BackwardCall>& calls, bool affine) {
  std::vector<Tensor> gradients;
  for (const BackwardCall& call : calls) gradients.push_back(call.grad_weight);
  if (affine) {
    for (const BackwardCall& call : calls) gradients.push_back(*call.grad_gain);
    for (const BackwardCall& call : calls) gradients.push_back(*call.grad_shift);
  }
  return gradients;
}

}  // namespace ws
