// The registration of the ops for CUDA, on PyTorch's current stream and with its allocator.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "../torch/host.h"
#include "api.h"

// Weak, because PyTorch without CUDA lacks it, and this library is to load there too.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace ws {
namespace {

class Cuda {
 public:
  explicit Cuda(const Tensor& weight) : weight_(weight) {}

  void run(const Work<Forward>* work, int64_t count) const { run(ws_cuda_forward, work, count); }
  void run(const Work<Backward>* work, int64_t count) const { run(ws_cuda_backward, work, count); }

 private:
  template <class Run, class Args>
  void run(Run run, const Work<Args>* work, int64_t count) const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "ws: this PyTorch has no CUDA");
    const int32_t device = weight_.get_device_index();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    Tensor workspace = weight_;
    const auto allocate = [](void* context, int64_t bytes) {
      auto& workspace = *static_cast<Tensor*>(context);
      workspace = torch::stable::new_empty(workspace, {bytes}, ScalarType::Byte);
      return workspace.mutable_data_ptr();
    };
    const int code = run(work, count, device, stream, allocate, &workspace);
    STD_TORCH_CHECK(code == 0, "ws: CUDA error: ", ws_cuda_error(code));
  }

  Tensor weight_;
};

STABLE_TORCH_LIBRARY_IMPL(ws, CUDA, m) {
  m.impl("standardize", TORCH_BOX(&forward<Cuda>));
  m.impl("forward", TORCH_BOX(&forward<Cuda>));
  m.impl("backward", TORCH_BOX(&backward<Cuda>));
  m.impl("backward_affine", TORCH_BOX(&backward_affine<Cuda>));
  m.impl("standardize_many", TORCH_BOX(&forward_many<Cuda>));
  m.impl("forward_many", TORCH_BOX(&forward_many<Cuda>));
  m.impl("backward_many", TORCH_BOX(&backward_many<Cuda>));
}

}  // namespace
}  // namespace ws
