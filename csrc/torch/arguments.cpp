#include "arguments.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <exception>
#include <utility>

#include "../memory.h"

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

// A dense result can be written to as it lies.
void check_out(const Tensor& out, const Tensor& weight) {
  STD_TORCH_CHECK(same_sizes(out, weight) && out.device() == weight.device(),
                  "ws: out must have the weight's shape and device");
  STD_TORCH_CHECK(weight.numel() == 0 || is_dense(view_of(out)),
                  "ws: out must fill its memory without gaps");
  check_memory(out, "out");
}

// A gradient of gain or shift [rows]; nothing is written to it for an empty weight.
Tensor new_vector(const Tensor& weight, int64_t rows) {
  return weight.numel() > 0 ? torch::stable::new_empty(weight, {rows})
                            : torch::stable::new_zeros(weight, {rows});
}

// Points args at the tensors, copies of inputs where their layout does not fit the results'.
template <class Args>
void describe(Call<Args>& call, int64_t channel_dim) {
  unsigned present[Args::kOperands];
  int count = 0;
  for (int i = 0; i < Args::kOperands; ++i) {
    if (call.operands[i].defined()) present[count++] = i;
  }
  Strides strides[Args::kOperands];
  bool copied[Args::kOperands] = {};
  for (int fitting = 0; fitting != count;) {
    View views[Args::kOperands];
    for (int k = 0; k < count; ++k) views[k] = view_of(call.operands[present[k]]);
    fitting = match_layout(views, count, channel_dim, &call.args.shape, strides);
    if (fitting < count) {
      const unsigned i = present[fitting];
      STD_TORCH_CHECK(i >= Args::kResults && !copied[i],
                      "ws: what is written must be dense within its channels, and all laid out "
                      "alike");
      call.operands[i] = copy_with_strides_of(call.operands[present[0]], call.operands[i]);
      copied[i] = true;
    }
  }
  const auto data_of = [](const Tensor& tensor, bool is_result) {
    return is_result ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  };
  for (int k = 0; k < count; ++k) {
    const unsigned i = present[k];
    const bool is_result = i < Args::kResults;
    STD_TORCH_CHECK(!is_result || Memory::is_nested(call.args.shape, strides[k]),
                    "ws: what is written must not overlap itself");
    call.args.operands[i] = {data_of(call.operands[i], is_result), strides[k]};
  }
  for (int i = 0; i < Args::kVectors; ++i) {
    if (call.vectors[i]) call.args.vectors[i] = data_of(*call.vectors[i], i < Args::kVectorResults);
  }
}

// What the passes that need the gradient of a weight, and of its gain and shift, have in common.
struct Gradient {
  int64_t channel_dim, rows;
  Formula formula;
  Types types;
  std::optional<Tensor> gain, grad_gain, grad_shift;
};

Gradient checked_gradient(const Tensor& grad, const Tensor& weight, std::optional<Tensor> gain,
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
  return {channel_dim,          rows, formula, types, std::move(gain), std::move(grad_gain),
          std::move(grad_shift)};
}

}  // namespace

Call<Forward> prepare_forward(Tensor weight, std::optional<Tensor> gain,
                              std::optional<Tensor> shift, int64_t channel_dim,
                              const Numbers& numbers, std::optional<ScalarType> dtype,
                              std::optional<Tensor> out) {
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  const Formula formula = checked_formula(weight, channel_dim, numbers);
  const ScalarType out_dtype = dtype.value_or(weight.scalar_type());
  const Types types = types_of(weight.scalar_type(), out_dtype);
  check_memory(weight, "weight");
  gain = checked_vector(std::move(gain), "gain", weight, rows);
  shift = checked_vector(std::move(shift), "shift", weight, rows);
  if (out) check_out(*out, weight);
  Call<Forward> call{{{}, formula, {}, {}},
                     types,
                     {out ? *out : empty_like(weight, out_dtype), std::move(weight)},
                     {std::move(gain), std::move(shift)}};
  if (call.operands[Forward::kWeight].numel() > 0) describe(call, channel_dim);
  return call;
}

Call<Backward> prepare_backward(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                                int64_t channel_dim, const Numbers& numbers, bool affine,
                                bool in_place) {
  Gradient of = checked_gradient(grad, weight, std::move(gain), channel_dim, numbers, affine);
  STD_TORCH_CHECK(!in_place || (grad.scalar_type() == weight.scalar_type() &&
                                (grad.numel() == 0 || is_dense(view_of(grad)))),
                  "ws: a grad that is written to must have the weight's dtype and no gaps");
  Call<Backward> call{{{}, of.formula, {}, {}},
                      of.types,
                      {in_place ? grad : empty_like(weight, weight.scalar_type()),
                       std::move(weight), std::move(grad)},
                      {std::move(of.grad_gain), std::move(of.grad_shift), std::move(of.gain)}};
  if (call.operands[Backward::kWeight].numel() > 0) describe(call, of.channel_dim);
  return call;
}

Call<Norms> prepare_norms(Tensor grad, Tensor weight, std::optional<Tensor> gain,
                          int64_t channel_dim, const Numbers& numbers, bool affine) {
  Gradient of = checked_gradient(grad, weight, std::move(gain), channel_dim, numbers, affine);
  Tensor squared_norm = new_vector(weight, of.rows);
  Call<Norms> call{{{}, of.formula, {}, {}},
                   of.types,
                   {std::move(weight), std::move(grad)},
                   {std::move(squared_norm), std::move(of.grad_gain), std::move(of.grad_shift),
                    std::move(of.gain)}};
  if (call.operands[Norms::kWeight].numel() > 0) describe(call, of.channel_dim);
  return call;
}

Call<Update> prepare_update(Tensor (&&operands)[Update::kOperands], std::optional<Tensor> gain,
                            std::optional<Tensor> new_gain, std::optional<Tensor> new_shift,
                            int64_t channel_dim, const Numbers& numbers, const Rule& rule) {
  const Tensor& weight = operands[Update::kWeight];
  const char* const names[] = {"out",          "weight",      "first state",
                               "second state", "third state", "grad"};
  channel_dim = checked_channel_dim(weight, channel_dim);
  const int64_t rows = weight.size(channel_dim);
  const Formula formula = checked_formula(weight, channel_dim, numbers);
  for (int i = 0; i < Update::kOperands; ++i) {
    const Tensor& operand = operands[i];
    if (!operand.defined()) continue;
    STD_TORCH_CHECK(
        same_sizes(operand, weight) && operand.device() == weight.device() &&
            (Update::kOf[i] != Of::kWeight || operand.scalar_type() == weight.scalar_type()),
        "ws: ", names[i], " must have the weight's shape and device, a state its dtype");
    check_memory(operand, names[i]);
  }
  const Types types = update_types_of(weight.scalar_type(), operands[Update::kOut].scalar_type(),
                                      operands[Update::kGrad].scalar_type());
  gain = checked_vector(std::move(gain), "gain", weight, rows);
  new_gain = checked_vector(std::move(new_gain), "new_gain", weight, rows);
  new_shift = checked_vector(std::move(new_shift), "new_shift", weight, rows);
  Call<Update> call{{{}, formula, {}, {}, rule},
                    types,
                    {},
                    {std::move(gain), std::move(new_gain), std::move(new_shift)}};
  for (int i = 0; i < Update::kOperands; ++i) call.operands[i] = std::move(operands[i]);
  if (call.operands[Update::kWeight].numel() > 0) describe(call, channel_dim);
  return call;
}

}  // namespace ws
