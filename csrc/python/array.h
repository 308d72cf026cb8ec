// An array of any library that speaks DLPack, held for the time of one call, never copied.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../layout.h"
#include "dlpack.h"

namespace ws {

namespace py = pybind11;

enum class Element { kF64, kF32, kF16, kBF16 };

class Array {
 public:
  // `name` is the argument's, for messages. `stream`: the CUDA stream that will use the array.
  Array(const char* name, const py::object& object, int64_t stream) : name_(name) {
    if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) {
      throw py::type_error(name_ +
                           " must be an array with __dlpack__ (NumPy, PyTorch, CuPy, JAX), " +
                           "got " + type_name(object));
    }
    const DLDevice device = device_of(object);
    py::dict arguments;
    if (device.device_type == kDLCUDA) {
      constexpr int64_t kDefaultStream = 1;  // DLPack's number for it; 0 is not allowed there
      arguments["stream"] = stream ? stream : kDefaultStream;
    }
    take(exported(object, arguments));
    check_what_came(device);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const std::string& name() const { return name_; }
  void* data() const { return static_cast<char*>(tensor_->data) + tensor_->byte_offset; }
  int64_t dim() const { return tensor_->ndim; }
  int64_t size(int64_t d) const { return tensor_->shape[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  int64_t numel() const { return numel_; }
  int64_t element_size() const { return (tensor_->dtype.bits * tensor_->dtype.lanes + 7) / 8; }
  const DLDevice& device() const { return tensor_->device; }
  View view() const { return {dim(), tensor_->shape, strides_.data()}; }
  std::string shape() const { return text_of(tensor_->shape); }
  std::string strides() const { return text_of(strides_.data()); }

  std::string dtype() const {
    const DLDataType& type = tensor_->dtype;
    const char* kind = type.code == kDLFloat    ? "float"
                       : type.code == kDLBfloat ? "bfloat"
                                                : nullptr;
    if (kind && type.lanes == 1) return kind + std::to_string(type.bits);
    return "DLPack type code " + std::to_string(type.code) + ", " + std::to_string(type.bits) +
           " bits, " + std::to_string(type.lanes) + " lanes";
  }

  Element element() const {
    const std::string type = dtype();
    if (type == "float64") return Element::kF64;
    if (type == "float32") return Element::kF32;
    if (type == "float16") return Element::kF16;
    if (type == "bfloat16") return Element::kBF16;
    throw py::value_error(name_ + " must be float64, float32, float16 or bfloat16, got " + type);
  }

  void require_writable() const {
    if (flags_ & kDLReadOnly) {
      throw py::value_error(name_ + " must be writable, got a read-only array");
    }
    if (flags_ & kDLIsCopied) {
      throw py::value_error(name_ + " must be shared by its __dlpack__, which gave a copy");
    }
  }

  void require_same_shape(const Array& other) const {
    if (shape() != other.shape()) {
      throw py::value_error(name_ + " must have " + other.name_ + "'s shape " + other.shape() +
                            ", got " + shape());
    }
    require_same_device(other);
  }

  // [rows] of the weight's type, contiguous.
  void require_vector(const Array& weight, int64_t rows) const {
    if (dim() != 1 || size(0) != rows || (rows > 1 && stride(0) != 1)) {
      throw py::value_error(name_ + " must be contiguous, of shape (" + std::to_string(rows) +
                            ",), got " + shape());
    }
    require_same_dtype(weight);
    require_same_device(weight);
  }

  void require_same_dtype(const Array& weight) const {
    if (dtype() != weight.dtype()) {
      throw py::value_error(name_ + " must have the weight's dtype " + weight.dtype() + ", got " +
                            dtype());
    }
  }

 private:
  static std::string type_name(const py::object& object) {
    return py::cast<std::string>(py::type::of(object).attr("__name__"));
  }

  DLDevice device_of(const py::object& object) const {
    const py::object device = object.attr("__dlpack_device__")();
    try {
      const auto [type, id] = py::cast<std::pair<int32_t, int32_t>>(device);
      return {type, id};
    } catch (const py::cast_error&) {
      throw py::type_error(name_ + "'s __dlpack_device__ must return two ints, got " +
                           py::cast<std::string>(py::repr(device)));
    }
  }

  // Of version 1, whose flags tell read-only memory, from whoever knows it.
  static py::object exported(const py::object& object, const py::dict& arguments) {
    const py::object dlpack = object.attr("__dlpack__");
    try {
      return dlpack(py::arg("max_version") = py::make_tuple(1, 0), **arguments);
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return dlpack(**arguments);
  }

  // Takes a capsule's array over; from here on its deleter is called once, whatever happens.
  void take(const py::object& capsule) {
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      const auto* managed =
          hold<DLManagedTensorVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned");
      if (managed->version.major != 1) {
        throw py::value_error(name_ + " must come by DLPack version 1 or 0, got version " +
                              std::to_string(managed->version.major));
      }
      flags_ = managed->flags;
      tensor_ = &managed->dl_tensor;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
      tensor_ = &hold<DLManagedTensor>(capsule, "dltensor", "used_dltensor")->dl_tensor;
    } else {
      throw py::type_error(name_ + "'s __dlpack__ must return an unused DLPack capsule, got " +
                           py::cast<std::string>(py::repr(capsule)));
    }
  }

  template <class Managed>
  const Managed* hold(const py::object& capsule, const char* name, const char* used) {
    void* const managed = PyCapsule_GetPointer(capsule.ptr(), name);
    PyCapsule_SetName(capsule.ptr(), used);
    held_ = {managed, [](void* pointer) {
               auto* managed = static_cast<Managed*>(pointer);
               if (managed->deleter != nullptr) managed->deleter(managed);
             }};
    return static_cast<const Managed*>(managed);
  }

  // Producers are not trusted: whatever the kernels rely on is checked. Fills strides_ and numel_.
  void check_what_came(const DLDevice& device) {
    const DLTensor& tensor = *tensor_;
    if (tensor.ndim < 0 || tensor.ndim > kMaxDims) {
      throw py::value_error(name_ + " must have at most 64 dimensions, got " +
                            std::to_string(tensor.ndim));
    }
    if (tensor.ndim > 0 && tensor.shape == nullptr) {
      throw py::value_error(name_ + " must have a shape, got a null pointer for it");
    }
    if (tensor.device.device_type != device.device_type ||
        tensor.device.device_id != device.device_id) {
      throw py::value_error(name_ + " must be on the device that its __dlpack_device__ names");
    }
    numel_ = 1;
    for (int d = 0; d < tensor.ndim; ++d) {
      if (size(d) < 0) throw py::value_error(name_ + " must have no negative size, got " + shape());
      if (size(d) == 0) numel_ = 0;
    }
    strides_.assign(tensor.ndim, 0);
    if (numel_ == 0) return;  // nothing is read or written
    bool fits = true;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
      strides_[d] = tensor.strides ? tensor.strides[d] : numel_;
      fits = fits && !__builtin_mul_overflow(numel_, size(d), &numel_);
    }
    const auto start = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
    if (!fits || !spans_fit() || start < tensor.byte_offset) {
      throw py::value_error(name_ + " must fit into memory, got shape " + shape() +
                            " and strides " + strides());
    }
    if (tensor.data == nullptr) {
      throw py::value_error(name_ + " must have memory for its elements, got a null pointer");
    }
    const int64_t size = element_size();
    if (size > 0 && start % size != 0) {
      throw py::value_error(name_ + " must be aligned to its elements of " + std::to_string(size) +
                            " bytes");
    }
  }

  // Whether the distances between elements, in bytes, are numbers that can be added up.
  bool spans_fit() const {
    int64_t total = 0;
    for (int64_t d = 0; d < dim(); ++d) {
      int64_t span;
      if (stride(d) == INT64_MIN || __builtin_mul_overflow(size(d), std::abs(stride(d)), &span) ||
          __builtin_add_overflow(total, span, &total)) {
        return false;
      }
    }
    return !__builtin_mul_overflow(total, element_size(), &total) &&
           !__builtin_mul_overflow(numel_, element_size(), &total);
  }

  std::string text_of(const int64_t* numbers) const {
    std::string text = "(";
    for (int64_t d = 0; d < dim(); ++d)
      text += std::to_string(numbers[d]) + (d + 1 < dim() ? ", " : "");
    return text + (dim() == 1 ? ",)" : ")");
  }

  void require_same_device(const Array& other) const {
    if (device().device_type != other.device().device_type ||
        device().device_id != other.device().device_id) {
      throw py::value_error(name_ + " must be on " + other.name_ + "'s device");
    }
  }

  std::string name_;
  std::unique_ptr<void, void (*)(void*)> held_{nullptr, nullptr};
  const DLTensor* tensor_ = nullptr;
  uint64_t flags_ = 0;
  int64_t numel_ = 0;
  std::vector<int64_t> strides_;
};

}  // namespace ws
