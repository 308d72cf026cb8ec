// torch_ws._C: the kernels on the arrays of any library that speaks DLPack, without copying and
// without PyTorch's tensors, and control of the CPU's instruction set.
//
// Results go into arrays of the caller's, so nothing is allocated here. Arrays are described by
// match_layout as the ops' tensors are; what would need a copy is refused. CPU arrays are worked on
// by PyTorch's threads with the GIL released, CUDA arrays on the stream that the caller names.
#include <pybind11/pybind11.h>

#include <cfloat>
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

// By Element.
const char* const kElementNames[] = {"float64", "float32", "float16", "bfloat16"};

Types types_of(Element weight, Element out, const std::string& out_name) {
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

Formula checked_formula(const Array& weight, int64_t channel_dim, const Numbers& numbers) {
  const auto& [eps, eps_mode, correction, center, scale] = numbers;
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

Element element_named(const char* argument, const std::string& name) {
  for (int i = 0; i < 4; ++i) {
    if (name == kElementNames[i]) return static_cast<Element>(i);
  }
  throw py::value_error(std::string(argument) +
                        " must be float64, float32, float16 or bfloat16, got " + name);
}

template <class Args>
py::dict describe_plan(int64_t rows, int64_t cols, Types types, int max_cluster) {
  Args args{};
  args.shape = {rows, cols, cols};
  for (Operand& operand : args.operands) operand.strides = {cols, cols};
  const Plan plan = cuda_api().pass<Args>().plan(args, types, max_cluster);
  const char* const accesses[] = {"vector", "flat", "scalar"};
  const char* const forms[] = {"rows", "cluster", "split"};
  using namespace pybind11::literals;
  return py::dict("name"_a = plan.tier.name,
                  "access"_a = accesses[static_cast<int>(plan.tier.access)],
                  "form"_a = forms[static_cast<int>(plan.tier.form)],
                  "max_cols"_a = plan.tier.max_cols(max_cluster), "team"_a = plan.tier.team,
                  "elements"_a = plan.tier.elements, "team_rows"_a = plan.tier.team_rows,
                  "vector"_a = plan.vec, "threads"_a = plan.tier.threads(), "rows"_a = plan.rows,
                  "resident"_a = plan.resident, "chunks"_a = plan.chunks, "blocks"_a = plan.blocks);
}

// What would be launched for a dense, aligned weight [rows, cols], on a chip that has clusters of so many
// blocks.
py::dict launch_plan(int64_t rows, int64_t cols, const std::string& direction,
                     const std::string& weight, const std::string& out, int cluster) {
  if (cluster < 1 || cluster > 16 || (cluster & (cluster - 1)) != 0) {
    throw py::value_error("cluster must be 1, 2, 4, 8 or 16, got " + std::to_string(cluster));
  }
  if (rows < 1 || cols < 1) throw py::value_error("rows and cols must be positive");
  const Element from = element_named("weight", weight);
  const Types types = types_of(from, out.empty() ? from : element_named("out", out), "out");
  if (direction == "forward") return describe_plan<Forward>(rows, cols, types, cluster);
  if (direction == "backward") return describe_plan<Backward>(rows, cols, types, cluster);
  if (direction == "norms") return describe_plan<Norms>(rows, cols, types, cluster);
  if (direction == "update" && from == Element::kF32)
    return describe_plan<Update>(rows, cols, types, cluster);
  throw py::value_error(
      "direction must be forward, backward or norms, or update of float32 weights; got " +
      direction + " of " + weight);
}

py::dict build_info() {
  using namespace pybind11::literals;
  py::dict info("compiler"_a = __VERSION__,
                "pybind11"_a = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
                    PYBIND11_VERSION_MINOR),
                "cuda"_a = py::none());
  try {
    const CudaApi& api = cuda_api();
    info["cuda"] = py::dict("toolkit"_a = std::to_string(api.toolkit / 1000) + "." +
                                          std::to_string(api.toolkit % 1000 / 10),
                            "architectures"_a = api.architectures);
  } catch (const std::runtime_error&) {  // no such library
  }
  return info;
}

template <class Args>
void run(const Array (&operands)[Args::kOperands],
         const std::unique_ptr<Array> (&vectors)[Args::kVectors], int64_t channel_dim,
         const Numbers& numbers, int64_t stream) {
  const Array& weight = operands[Args::kWeight];
  for (int i = 0; i < Args::kResults; ++i) operands[i].require_writable();
  for (int i = 0; i < Args::kVectorResults; ++i) {
    if (vectors[i]) vectors[i]->require_writable();
  }
  channel_dim = checked_channel_dim(weight, channel_dim);
  Types types{};
  for (int i = 0; i < Args::kOperands; ++i) {
    const Array& array = operands[i];
    if (Args::kOf[i] != Of::kWeight)
      types = types_of(weight.element(), array.element(), array.name());
  }
  for (int i = 0; i < Args::kOperands; ++i) {
    operands[i].require_same_shape(weight);
    if (Args::kOf[i] == Of::kWeight) operands[i].require_same_dtype(weight);
  }
  for (const auto& vector : vectors) {
    if (vector) vector->require_vector(weight, weight.size(channel_dim));
  }
  Args args{};
  args.formula = checked_formula(weight, channel_dim, numbers);
  require_supported_device(weight);
  if (weight.numel() == 0) return;
  describe(operands, channel_dim, args);
  std::vector<Occupied> results, inputs;
  for (int i = 0; i < Args::kOperands; ++i) {
    (i < Args::kResults ? results : inputs)
        .emplace_back(operands[i], args.shape, args.operands[i].strides);
  }
  for (int i = 0; i < Args::kVectors; ++i) {
    if (!vectors[i]) continue;
    (i < Args::kVectorResults ? results : inputs).emplace_back(*vectors[i]);
    args.vectors[i] = vectors[i]->data();
  }
  require_apart(results, inputs);
  const Work<Args> work{types, &args};
  if (weight.device().device_type == kDLCUDA) {
    const int code = cuda_api().pass<Args>().run(&work, 1, weight.device().device_id,
                                                 reinterpret_cast<void*>(stream), nullptr, nullptr);
    if (code != 0) throw std::runtime_error(cuda_api().error(code));
    return;
  }
  py::gil_scoped_release release;
  run_on_cpu(&work, 1);
}

void forward(const py::object& weight, const py::object& out, const py::object& gain,
             const py::object& shift, int64_t channel_dim, double eps, int64_t eps_mode,
             int64_t correction, bool center, double scale, int64_t stream) {
  run<Forward>({{"out", out, stream}, {"weight", weight, stream}},
               {optional_array("gain", gain, stream), optional_array("shift", shift, stream)},
               channel_dim, {eps, eps_mode, correction, center, scale}, stream);
}

void backward(const py::object& grad, const py::object& weight, const py::object& grad_weight,
              const py::object& gain, const py::object& grad_gain, const py::object& grad_shift,
              int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction, bool center,
              double scale, int64_t stream) {
  run<Backward>(
      {{"grad_weight", grad_weight, stream}, {"weight", weight, stream}, {"grad", grad, stream}},
      {optional_array("grad_gain", grad_gain, stream),
       optional_array("grad_shift", grad_shift, stream), optional_array("gain", gain, stream)},
      channel_dim, {eps, eps_mode, correction, center, scale}, stream);
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
      py::arg("cluster") = 16,
      "How CUDA works on a dense, aligned weight of that size: the launch table's tier, and its\n"
      "blocks. `out` is the result's dtype, by default the weight's; `cluster` the blocks that a\n"
      "cluster of the chip can have: 1 before 9.0, 16 on an H100.");
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
