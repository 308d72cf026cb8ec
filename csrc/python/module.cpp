// torch_ws._C: the kernels on the arrays of any library that speaks DLPack, without copying and
// without PyTorch's tensors, and control of the CPU's instruction set.
//
// Results go into arrays of the caller's, so nothing is allocated here. Arrays are described by
// match_layout as the ops' tensors are; what would need a copy is refused.
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "../cpu/kernels.h"
#include "../cpu/parallel.h"
#include "array.h"

namespace ws {
namespace {

// An optional argument, empty for None.
std::unique_ptr<Array> optional_array(const char* name, const py::object& object,
                                      const py::object& stream) {
  return object.is_none() ? nullptr : std::make_unique<Array>(name, object, stream);
}

void* data_or_null(const std::unique_ptr<Array>& array) { return array ? array->data() : nullptr; }

Types types_of(const Array& weight, const Array& out) {
  const Element from = weight.element(), to = out.element();
  if (from == to) return static_cast<Types>(from);
  if (from == Element::kF32 && to == Element::kF16) return kF32ToF16;
  if (from == Element::kF32 && to == Element::kBF16) return kF32ToBF16;
  throw py::value_error(out.name() + " must have the weight's dtype, or float16 or bfloat16 for a "
                        "float32 weight; got " + out.dtype() + " for " + weight.dtype());
}
static_assert(static_cast<int>(Element::kBF16) == kBF16, "Element and Types share their order");

int64_t checked_channel_dim(const Array& weight, int64_t channel_dim) {
  const int64_t dim = weight.dim();
  if (dim < 2 || dim > kMaxDims) {
    throw py::value_error("weight must have at least 2 dimensions, got shape " + weight.shape());
  }
  if (channel_dim < -dim || channel_dim >= dim) {
    throw py::value_error("channel_dim must be in [" + std::to_string(-dim) + ", " +
                          std::to_string(dim - 1) + "], got " + std::to_string(channel_dim));
  }
  return channel_dim < 0 ? channel_dim + dim : channel_dim;
}

Formula checked_formula(const Array& weight, int64_t channel_dim, double eps, int64_t eps_mode,
                        int64_t correction, bool center, double scale) {
  if (eps_mode < 0 || eps_mode > 2) {
    throw py::value_error("eps_mode must be 0 \"std\", 1 \"var\" or 2 \"clamp\", got " +
                          std::to_string(eps_mode));
  }
  if (!(eps >= 0) || eps - eps != 0 || scale - scale != 0) {
    throw py::value_error("eps must be finite and not negative, and scale finite");
  }
  const int64_t numel = weight.numel();
  if (correction < 0 || (numel > 0 && correction >= numel / weight.size(channel_dim))) {
    throw py::value_error("correction must be in [0, elements of a channel), got " +
                          std::to_string(correction));
  }
  return {eps, scale, correction, static_cast<EpsMode>(eps_mode), center};
}

// Fills shape and strides[i] for arrays[i]; arrays[0] is a result.
template <int kCount>
void describe(const Array* const (&arrays)[kCount], int64_t channel_dim, Shape* shape,
              Strides (&strides)[kCount]) {
  View views[kCount];
  for (int i = 0; i < kCount; ++i) views[i] = arrays[i]->view();
  const int fitting = match_layout(views, kCount, channel_dim, shape, strides);
  if (fitting < kCount) {
    throw py::value_error(arrays[fitting]->name() + " must be dense within its channels and laid "
                          "out as " + arrays[0]->name() + " is; its strides would need a copy");
  }
}

void require_cpu(const Array& weight) {
  if (weight.device().device_type != kDLCPU) {
    throw py::value_error("weight must be on the CPU, got DLPack device type " +
                          std::to_string(weight.device().device_type));
  }
}

void forward(const py::object& weight_object, const py::object& out_object,
             const py::object& gain_object, const py::object& shift_object, int64_t channel_dim,
             double eps, int64_t eps_mode, int64_t correction, bool center, double scale,
             const py::object& stream) {
  const Array weight("weight", weight_object, stream);
  const Array out("out", out_object, stream);
  const auto gain = optional_array("gain", gain_object, stream);
  const auto shift = optional_array("shift", shift_object, stream);
  channel_dim = checked_channel_dim(weight, channel_dim);
  const Types types = types_of(weight, out);
  out.require_same_shape(weight);
  if (gain) gain->require_vector(weight, weight.size(channel_dim));
  if (shift) shift->require_vector(weight, weight.size(channel_dim));
  Forward args{};
  args.formula = checked_formula(weight, channel_dim, eps, eps_mode, correction, center, scale);
  require_cpu(weight);
  if (weight.numel() == 0) return;
  Strides strides[2];
  describe({&out, &weight}, channel_dim, &args.shape, strides);
  args.weight = weight.data();
  args.gain = data_or_null(gain);
  args.shift = data_or_null(shift);
  args.out = out.data();
  args.out_strides = strides[0];
  args.weight_strides = strides[1];
  py::gil_scoped_release release;
  run_forward(types, args);
}

void backward(const py::object& grad_object, const py::object& weight_object,
              const py::object& grad_weight_object, const py::object& gain_object,
              const py::object& grad_gain_object, const py::object& grad_shift_object,
              int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction, bool center,
              double scale, const py::object& stream) {
  const Array grad("grad", grad_object, stream);
  const Array weight("weight", weight_object, stream);
  const Array grad_weight("grad_weight", grad_weight_object, stream);
  const auto gain = optional_array("gain", gain_object, stream);
  const auto grad_gain = optional_array("grad_gain", grad_gain_object, stream);
  const auto grad_shift = optional_array("grad_shift", grad_shift_object, stream);
  channel_dim = checked_channel_dim(weight, channel_dim);
  const Types types = types_of(weight, grad);
  grad.require_same_shape(weight);
  grad_weight.require_same_shape(weight);
  if (grad_weight.dtype() != weight.dtype()) {
    throw py::value_error("grad_weight must have the weight's dtype " + weight.dtype() + ", got " +
                          grad_weight.dtype());
  }
  for (const auto* vector : {&gain, &grad_gain, &grad_shift}) {
    if (*vector) (*vector)->require_vector(weight, weight.size(channel_dim));
  }
  Backward args{};
  args.formula = checked_formula(weight, channel_dim, eps, eps_mode, correction, center, scale);
  require_cpu(weight);
  if (weight.numel() == 0) return;
  Strides strides[3];
  describe({&grad_weight, &weight, &grad}, channel_dim, &args.shape, strides);
  args.grad = grad.data();
  args.weight = weight.data();
  args.gain = data_or_null(gain);
  args.grad_weight = grad_weight.data();
  args.grad_gain = data_or_null(grad_gain);
  args.grad_shift = data_or_null(grad_shift);
  args.grad_weight_strides = strides[0];
  args.weight_strides = strides[1];
  args.grad_strides = strides[2];
  py::gil_scoped_release release;
  run_backward(types, args);
}

}  // namespace
}  // namespace ws

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  using namespace ws;
  m.doc() = "The kernels of torch_ws on DLPack arrays (NumPy, PyTorch, CuPy, JAX).";
  m.def("cpu_capability", [] { return cpu_kernels().name; },
        "The instruction set of the CPU kernels in use: \"avx512\", \"avx2\" or \"default\".");
  m.def(
      "set_cpu_capability",
      [](const std::string& name) {
        if (!set_cpu_capability(name.c_str())) {
          throw py::value_error("name must be an instruction set that this machine has, one of " +
                                std::string("avx512, avx2, default; got ") + name);
        }
      },
      py::arg("name"), "Uses another instruction set from now on. For tests and benchmarks.");
  m.def("forward", &forward, py::arg("weight"), py::arg("out"), py::arg("gain") = py::none(),
        py::arg("shift") = py::none(), py::kw_only(), py::arg("channel_dim") = 0,
        py::arg("eps") = 1e-5, py::arg("eps_mode") = 0, py::arg("correction") = 0,
        py::arg("center") = true, py::arg("scale") = 1.0, py::arg("stream") = py::none(),
        "Writes the standardized weight to `out`; the arguments are those of ws::standardize.");
  m.def("backward", &backward, py::arg("grad"), py::arg("weight"), py::arg("grad_weight"),
        py::arg("gain") = py::none(), py::arg("grad_gain") = py::none(),
        py::arg("grad_shift") = py::none(), py::kw_only(), py::arg("channel_dim") = 0,
        py::arg("eps") = 1e-5, py::arg("eps_mode") = 0, py::arg("correction") = 0,
        py::arg("center") = true, py::arg("scale") = 1.0, py::arg("stream") = py::none(),
        "Writes the gradient of the weight to `grad_weight`, and where given those of gain and\n"
        "shift, from `grad`, the gradient of forward's `out`.");
}
