// torch_ws._C: the kernels on the arrays of any library that speaks DLPack, without copying and
// without PyTorch's tensors, and control of the CPU's instruction set.
//
// Results go into arrays of the caller's, so nothing is allocated here. Arrays are described by
// match_layout as the ops' tensors are; what would need a copy is refused. CPU arrays are worked on
// by PyTorch's threads with the GIL released, CUDA arrays on the stream that the caller names.
#include <pybind11/pybind11.h>

#include <cfloat>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/parallel.h"
#include "array.h"
#include "cuda_library.h"
#include "operands.h"

namespace ws {
namespace {

// An optional argument, empty for None.
std::unique_ptr<Array> optional_array(const char* name, const py::object& object, int64_t stream) {
  return object.is_none() ? nullptr : std::make_unique<Array>(name, object, stream);
}

void require_writable(std::initializer_list<const Array*> results) {
  for (const Array* result : results) {
    if (result != nullptr) result->require_writable();
  }
}

void* data_or_null(const std::unique_ptr<Array>& array) { return array ? array->data() : nullptr; }

// By Element.
const char* const kElementNames[] = {"float64", "float32", "float16", "bfloat16"};

Types types_of(Element weight, Element out, const std::string& out_name = "out") {
  if (weight == out) return static_cast<Types>(weight);
  if (weight == Element::kF32 && out == Element::kF16) return kF32ToF16;
  if (weight == Element::kF32 && out == Element::kBF16) return kF32ToBF16;
  throw py::value_error(out_name +
                        " must have the weight's dtype, or float16 or bfloat16 for a "
                        "float32 weight; got " +
                        kElementNames[static_cast<int>(out)] + " for " +
                        kElementNames[static_cast<int>(weight)]);
}
static_assert(static_cast<int>(Element::kBF16) == kBF16, "Element and Types share their order");

int64_t checked_channel_dim(const Array& weight, int64_t channel_dim) {
  const int64_t dim = weight.dim();
  if (dim < 2) {
    throw py::value_error("weight must have at least 2 dimensions, got shape " + weight.shape());
  }
  if (channel_dim < -dim || channel_dim >= dim) {
    throw py::value_error("channel_dim must be in [" + std::to_string(-dim) + ", " +
                          std::to_string(dim - 1) + "], got " + std::to_string(channel_dim));
  }
  return channel_dim < 0 ? channel_dim + dim : channel_dim;
}

std::string number_text(double number) { return py::cast<std::string>(py::str(py::cast(number))); }

Formula checked_formula(const Array& weight, int64_t channel_dim, double eps, int64_t eps_mode,
                        int64_t correction, bool center, double scale) {
  if (eps_mode < 0 || eps_mode > 2) {
    throw py::value_error("eps_mode must be 0 \"std\", 1 \"var\" or 2 \"clamp\", got " +
                          std::to_string(eps_mode));
  }
  // in the type of the statistics
  const double largest = weight.element() == Element::kF64 ? DBL_MAX : FLT_MAX;
  if (!(0 <= eps && eps <= largest) || !(-largest <= scale && scale <= largest)) {
    throw py::value_error("eps must be finite and not negative, and scale finite, in " +
                          std::string(largest == DBL_MAX ? "float64" : "float32") + "; got eps " +
                          number_text(eps) + " and scale " + number_text(scale));
  }
  const int64_t numel = weight.numel();
  if (correction < 0 || (numel > 0 && correction >= numel / weight.size(channel_dim))) {
    throw py::value_error("correction must be in [0, elements of a channel), got " +
                          std::to_string(correction));
  }
  return {eps, scale, correction, static_cast<EpsMode>(eps_mode), center};
}

void require_supported_device(const Array& weight) {
  const int32_t type = weight.device().device_type;
  if (type != kDLCPU && type != kDLCUDA) {
    throw py::value_error("weight must be on the CPU or a CUDA device, got DLPack device type " +
                          std::to_string(type));
  }
}

void check_launch(int code) {
  if (code != 0) throw std::runtime_error(CudaLibrary::get().error(code));
}

Element element_named(const char* argument, const std::string& name) {
  for (int i = 0; i < 4; ++i) {
    if (name == kElementNames[i]) return static_cast<Element>(i);
  }
  throw py::value_error(std::string(argument) +
                        " must be float64, float32, float16 or bfloat16, got " + name);
}

// What would be launched for a dense, aligned weight [rows, cols].
py::dict launch_plan(int64_t rows, int64_t cols, const std::string& direction,
                     const std::string& weight, const std::string& out) {
  if (rows < 1 || cols < 1) throw py::value_error("rows and cols must be positive");
  if (direction != "forward" && direction != "backward") {
    throw py::value_error("direction must be forward or backward, got " + direction);
  }
  const Element from = element_named("weight", weight);
  const Types types = types_of(from, out.empty() ? from : element_named("out", out));
  const Shape shape{rows, cols, cols};
  const Strides dense{cols, cols};
  Plan plan;
  if (direction == "forward") {
    Forward args{};
    args.shape = shape;
    args.weight_strides = args.out_strides = dense;
    plan = CudaLibrary::get().forward_plan(&args, types);
  } else {
    Backward args{};
    args.shape = shape;
    args.grad_strides = args.weight_strides = args.grad_weight_strides = dense;
    plan = CudaLibrary::get().backward_plan(&args, types);
  }
  using namespace pybind11::literals;
  return py::dict("name"_a = plan.name, "access"_a = plan.access, "max_cols"_a = plan.max_cols,
                  "team"_a = plan.team, "elements"_a = plan.elements,
                  "team_rows"_a = plan.team_rows, "vector"_a = plan.vector,
                  "threads"_a = plan.threads, "rows"_a = plan.rows, "chunks"_a = plan.chunks,
                  "blocks"_a = plan.blocks);
}

py::dict build_info() {
  using namespace pybind11::literals;
  py::dict info("compiler"_a = __VERSION__,
                "pybind11"_a = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
                    PYBIND11_VERSION_MINOR),
                "cuda"_a = py::none());
  const CudaLibrary* library;
  try {
    library = &CudaLibrary::get();
  } catch (const std::runtime_error&) {
    return info;
  }
  const int toolkit = library->toolkit();
  info["cuda"] = py::dict(
      "toolkit"_a = std::to_string(toolkit / 1000) + "." + std::to_string(toolkit % 1000 / 10),
      "architectures"_a = library->architectures());
  return info;
}

void forward(const py::object& weight_object, const py::object& out_object,
             const py::object& gain_object, const py::object& shift_object, int64_t channel_dim,
             double eps, int64_t eps_mode, int64_t correction, bool center, double scale,
             int64_t stream) {
  const Array weight("weight", weight_object, stream);
  const Array out("out", out_object, stream);
  const auto gain = optional_array("gain", gain_object, stream);
  const auto shift = optional_array("shift", shift_object, stream);
  require_writable({&out});
  channel_dim = checked_channel_dim(weight, channel_dim);
  const Types types = types_of(weight.element(), out.element());
  out.require_same_shape(weight);
  if (gain) gain->require_vector(weight, weight.size(channel_dim));
  if (shift) shift->require_vector(weight, weight.size(channel_dim));
  Forward args{};
  args.formula = checked_formula(weight, channel_dim, eps, eps_mode, correction, center, scale);
  require_supported_device(weight);
  if (weight.numel() == 0) return;
  Strides strides[2];
  describe({&out, &weight}, channel_dim, &args.shape, strides);
  std::vector<Operand> inputs{{weight, args.shape, strides[1]}};
  if (gain) inputs.emplace_back(*gain);
  if (shift) inputs.emplace_back(*shift);
  require_apart({{out, args.shape, strides[0]}}, inputs);
  args.weight = weight.data();
  args.gain = data_or_null(gain);
  args.shift = data_or_null(shift);
  args.out = out.data();
  args.out_strides = strides[0];
  args.weight_strides = strides[1];
  const Work<Forward> work{types, &args};
  if (weight.device().device_type == kDLCUDA) {
    return check_launch(CudaLibrary::get().forward(
        &work, 1, weight.device().device_id, reinterpret_cast<void*>(stream), nullptr, nullptr));
  }
  py::gil_scoped_release release;
  run_forward(&work, 1);
}

void backward(const py::object& grad_object, const py::object& weight_object,
              const py::object& grad_weight_object, const py::object& gain_object,
              const py::object& grad_gain_object, const py::object& grad_shift_object,
              int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction, bool center,
              double scale, int64_t stream) {
  const Array grad("grad", grad_object, stream);
  const Array weight("weight", weight_object, stream);
  const Array grad_weight("grad_weight", grad_weight_object, stream);
  const auto gain = optional_array("gain", gain_object, stream);
  const auto grad_gain = optional_array("grad_gain", grad_gain_object, stream);
  const auto grad_shift = optional_array("grad_shift", grad_shift_object, stream);
  require_writable({&grad_weight, grad_gain.get(), grad_shift.get()});
  channel_dim = checked_channel_dim(weight, channel_dim);
  const Types types = types_of(weight.element(), grad.element(), "grad");
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
  require_supported_device(weight);
  if (weight.numel() == 0) return;
  Strides strides[3];
  describe({&grad_weight, &weight, &grad}, channel_dim, &args.shape, strides);
  std::vector<Operand> results{{grad_weight, args.shape, strides[0]}};
  std::vector<Operand> inputs{{weight, args.shape, strides[1]}, {grad, args.shape, strides[2]}};
  if (gain) inputs.emplace_back(*gain);
  if (grad_gain) results.emplace_back(*grad_gain);
  if (grad_shift) results.emplace_back(*grad_shift);
  require_apart(results, inputs);
  args.grad = grad.data();
  args.weight = weight.data();
  args.gain = data_or_null(gain);
  args.grad_weight = grad_weight.data();
  args.grad_gain = data_or_null(grad_gain);
  args.grad_shift = data_or_null(grad_shift);
  args.grad_weight_strides = strides[0];
  args.weight_strides = strides[1];
  args.grad_strides = strides[2];
  const Work<Backward> work{types, &args};
  if (weight.device().device_type == kDLCUDA) {
    return check_launch(CudaLibrary::get().backward(
        &work, 1, weight.device().device_id, reinterpret_cast<void*>(stream), nullptr, nullptr));
  }
  py::gil_scoped_release release;
  run_backward(&work, 1);
}

}  // namespace
}  // namespace ws

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  using namespace ws;
  m.doc() = "The kernels of torch_ws on DLPack arrays (NumPy, PyTorch, CuPy, JAX).";
  m.def(
      "cpu_capability", [] { return cpu_kernels().name; },
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
  m.def("build_info", &build_info,
        "What the module was built with: `compiler`, `pybind11`, and `cuda`, the toolkit and\n"
        "architectures of the CUDA kernels, or None where there are none.");
  m.def(
      "launch_plan", &launch_plan, py::arg("rows"), py::arg("cols"), py::kw_only(),
      py::arg("direction") = "forward", py::arg("weight") = "float32", py::arg("out") = "",
      "How CUDA works on a dense, aligned weight of that size: the launch table's entry, and its\n"
      "blocks. `out` is the result's dtype, by default the weight's.");
  m.def("forward", &forward, py::arg("weight"), py::arg("out"), py::arg("gain") = py::none(),
        py::arg("shift") = py::none(), py::kw_only(), py::arg("channel_dim") = 0,
        py::arg("eps") = 1e-5, py::arg("eps_mode") = 0, py::arg("correction") = 0,
        py::arg("center") = true, py::arg("scale") = 1.0, py::arg("stream") = 0,
        "Writes the standardized weight to `out`; the arguments are those of ws::standardize.\n\n"
        "In place is allowed: `out` may be `weight`, the same memory with the same strides and "
        "dtype.\n"
        "Other overlaps of `out`, also with itself, are refused, and so are read-only results.\n\n"
        "Raises TypeError for what is no DLPack array, and ValueError for a shape, dtype, device,\n"
        "layout, overlap or number that does not fit; nothing is written then.");
  m.def(
      "backward", &backward, py::arg("grad"), py::arg("weight"), py::arg("grad_weight"),
      py::arg("gain") = py::none(), py::arg("grad_gain") = py::none(),
      py::arg("grad_shift") = py::none(), py::kw_only(), py::arg("channel_dim") = 0,
      py::arg("eps") = 1e-5, py::arg("eps_mode") = 0, py::arg("correction") = 0,
      py::arg("center") = true, py::arg("scale") = 1.0, py::arg("stream") = 0,
      "Writes the gradient of the weight to `grad_weight`, and where given those of gain and\n"
      "shift, from `grad`, the gradient of forward's `out`.\n\n"
      "In place is allowed: `grad_weight` may be `grad` or `weight`, the same memory with the "
      "same\n"
      "strides and dtype. Other overlaps of a result with itself, an input or another result are\n"
      "refused, and so are read-only results. Raises as `forward` does.");
}
