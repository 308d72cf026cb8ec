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

struct Workspace {
  int32_t device;
  std::optional<Tensor> memory;
};

void* allocate(void* context, int64_t bytes) {
  auto& workspace = *static_cast<Workspace*>(context);
  const int64_t stride = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(),
                                                  aoti_torch_device_type_cuda(), workspace.device,
                                                  &handle));
  workspace.memory = Tensor(handle);
  return workspace.memory->mutable_data_ptr();
}

template <class Args>
void run_on_cuda(const Work<Args>* work, int64_t count, int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "ws: this PyTorch has no CUDA");
  if constexpr (std::is_same_v<Args, Update>) {
    for (int64_t i = 0; i < count; ++i)
      STD_TORCH_CHECK(work[i].types != kF64, "ws: no update of float64 weights on CUDA");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  Workspace workspace{device, {}};
  const int code = ws_cuda.pass<Args>().run(work, count, device, stream, allocate, &workspace);
  STD_TORCH_CHECK(code == 0, "ws: CUDA error: ", ws_cuda.error(code));
}

STABLE_TORCH_LIBRARY_IMPL(ws, CUDA, m) {
  m.impl("standardize", TORCH_BOX(&forward<run_on_cuda>));
  m.impl("forward", TORCH_BOX(&forward<run_on_cuda>));
  m.impl("backward", TORCH_BOX(&backward<run_on_cuda>));
  m.impl("backward_affine", TORCH_BOX(&backward_affine<run_on_cuda>));
  m.impl("standardize_many", TORCH_BOX(&forward_many<run_on_cuda>));
  m.impl("forward_many", TORCH_BOX(&forward_many<run_on_cuda>));
  m.impl("forward_into", TORCH_BOX(&forward_into<run_on_cuda>));
  m.impl("backward_many", TORCH_BOX(&backward_many<run_on_cuda>));
  m.impl("norms_many", TORCH_BOX(&norms_many<run_on_cuda>));
  m.impl("update_many", TORCH_BOX(&update_many<run_on_cuda>));
}

}  // namespace
}  // namespace ws
