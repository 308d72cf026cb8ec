// An array of any library that speaks DLPack, held for the time of one call, never copied.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
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
    if (!py::hasattr(object, "__dlpack__")) {
      throw py::type_error(std::string(name) +
                           " must be an array with __dlpack__ (NumPy, PyTorch, "
                           "CuPy, JAX), got " +
                           py::cast<std::string>(py::type::of(object).attr("__name__")));
    }
    const py::tuple device = object.attr("__dlpack_device__")();
    const bool on_cuda = py::cast<int>(device[0]) == kDLCUDA;
    constexpr int64_t kDefaultStream = 1;  // DLPack's number for it; 0 is not allowed there
    capsule_ = on_cuda
                   ? object.attr("__dlpack__")(py::arg("stream") = stream ? stream : kDefaultStream)
                   : object.attr("__dlpack__")();
    managed_ = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
    if (managed_ == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule_.ptr(), "used_dltensor");
    const DLTensor& tensor = managed_->dl_tensor;
    strides_.resize(tensor.ndim);
    int64_t stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
      strides_[d] = tensor.strides ? tensor.strides[d] : stride;
      stride *= tensor.shape[d];
    }
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
  }

  const std::string& name() const { return name_; }
  void* data() const {
    return static_cast<char*>(managed_->dl_tensor.data) + managed_->dl_tensor.byte_offset;
  }
  int64_t dim() const { return managed_->dl_tensor.ndim; }
  int64_t size(int64_t d) const { return managed_->dl_tensor.shape[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  const DLDevice& device() const { return managed_->dl_tensor.device; }
  View view() const { return {dim(), managed_->dl_tensor.shape, strides_.data()}; }

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d = 0; d < dim(); ++d) n *= size(d);
    return n;
  }

  std::string shape() const {
    std::string text = "(";
    for (int64_t d = 0; d < dim(); ++d)
      text += std::to_string(size(d)) + (d + 1 < dim() ? ", " : "");
    return text + (dim() == 1 ? ",)" : ")");
  }

  std::string dtype() const {
    const DLDataType& type = managed_->dl_tensor.dtype;
    const char* kind = type.code == kDLFloat    ? "float"
                       : type.code == kDLBfloat ? "bfloat"
                                                : nullptr;
    return kind ? kind + std::to_string(type.bits)
                : "DLPack type code " + std::to_string(type.code) + ", " +
                      std::to_string(type.bits) + " bits";
  }

  Element element() const {
    const std::string type = dtype();
    if (managed_->dl_tensor.dtype.lanes == 1) {
      if (type == "float64") return Element::kF64;
      if (type == "float32") return Element::kF32;
      if (type == "float16") return Element::kF16;
      if (type == "bfloat16") return Element::kBF16;
    }
    throw py::value_error(name_ + " must be float64, float32, float16 or bfloat16, got " + type);
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
    if (dtype() != weight.dtype()) {
      throw py::value_error(name_ + " must have the weight's dtype " + weight.dtype() + ", got " +
                            dtype());
    }
    require_same_device(weight);
  }

 private:
  void require_same_device(const Array& other) const {
    if (device().device_type != other.device().device_type ||
        device().device_id != other.device().device_id) {
      throw py::value_error(name_ + " must be on " + other.name_ + "'s device");
    }
  }

  std::string name_;
  py::object capsule_;
  DLManagedTensor* managed_ = nullptr;
  std::vector<int64_t> strides_;
};

}  // namespace ws
