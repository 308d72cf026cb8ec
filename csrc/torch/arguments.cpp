#include "arguments.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <exception>
#include <utility>

namespace ws {
namespace {

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

// A gradient of gain or shift [rows]; nothing is written to it for an empty weight.
Tensor new_vector(const Tensor& weight, int64_t rows) {
  return weight.numel() > 0 ? torch::stable::new_empty(weight, {rows})
                            : torch::stable::new_zeros(weight, {rows});
}

// Points args at the tensors, copies of inputs where their layout does not fit the results'.
template <class Args>
void describe(Call<Args>& call, int64_t channel_dim) {
  constexpr int kCount = Args::kOperands;
  Strides strides[kCount];
  for (int fitting = 0; fitting != kCount;) {
    View views[kCount];
    for (int i = 0; i < kCount; ++i) views[i] = view_of(call.operands[i]);
    fitting = match_layout(views, kCount, channel_dim, &call.args.shape, strides);
    if (fitting < kCount) {
      Tensor& misfit = call.operands[fitting];
      misfit = copy_with_strides_of(call.operands[0], misfit);
    }
  }
  const auto data_of = [](const Tensor& tensor, bool is_result) {
    return is_result ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  };
  for (int i = 0; i < kCount; ++i) {
    call.args.operands[i] = {data_of(call.operands[i], i < Args::kResults), strides[i]};
  }
  for (int i = 0; i < Args::kVectors; ++i) {
    if (call.vectors[i]) call.args.vectors[i] = data_of(*call.vectors[i], i < Args::kVectorResults);
  }
}

}  // namespace

Call<Forward> prepare_forward(Tensor weight, std::optional<Tensor> gain,
                              std::optional<Tensor> shift, int64_t channel_dim,
                              const Numbers& numbers, std::optional<ScalarType> dtype) {
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  const Formula formula = checked_formula(weight, channel_dim, numbers);
  const ScalarType out_dtype = dtype.value_or(weight.scalar_type());
  const Types types = types_of(weight.scalar_type(), out_dtype);
  check_memory(weight, "weight");
  gain = checked_vector(std::move(gain), "gain", weight, rows);
  shift = checked_vector(std::move(shift), "shift", weight, rows);
  Call<Forward> call{{{}, formula, {}, {}},
                     types,
                     {empty_like(weight, out_dtype), std::move(weight)},
                     {std::move(gain), std::move(shift)}};
  if (call.operands[Forward::kWeight].numel() > 0) describe(call, channel_dim);
  return call;
}

Call<Backward> prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                                int64_t channel_dim, const Numbers& numbers, bool affine) {
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  const Formula formula = checked_formula(weight, channel_dim, numbers);
  STD_TORCH_CHECK(same_sizes(grad, weight) && grad.device() == weight.device(),
                  "ws: grad must have the weight's shape and device");
  const Types types = types_of(weight.scalar_type(), grad.scalar_type());
  check_memory(grad, "grad");
  check_memory(weight, "weight");
  gain = checked_vector(std::move(gain), "gain", weight, rows);
  std::optional<Tensor> grad_gain, grad_shift;
  if (affine) {
    grad_gain = new_vector(weight, rows);
    grad_shift = new_vector(weight, rows);
  }
  Call<Backward> call{
      {{}, formula, {}, {}},
      types,
      {empty_like(weight, weight.scalar_type()), std::move(weight), std::move(grad)},
      {std::move(grad_gain), std::move(grad_shift), std::move(gain)}};
  if (call.operands[Backward::kWeight].numel() > 0) describe(call, channel_dim);
  return call;
}

}  // namespace ws
