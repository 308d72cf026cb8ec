// libws_cuda.so as the pybind11 module sees it: found beside the module, and loaded when the first
// CUDA array comes, so that everything else works on machines without CUDA.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "../cuda/api.h"

namespace ws {

class CudaLibrary {
 public:
  // Throws with the loader's reason where there is no such library.
  static const CudaLibrary& get() {
    static const CudaLibrary library;
    return library;
  }

  decltype(&ws_cuda_forward) forward;
  decltype(&ws_cuda_backward) backward;
  decltype(&ws_cuda_error) error;
  decltype(&ws_cuda_forward_plan) forward_plan;
  decltype(&ws_cuda_backward_plan) backward_plan;
  decltype(&ws_cuda_toolkit) toolkit;
  decltype(&ws_cuda_architectures) architectures;

 private:
  CudaLibrary() {
    Dl_info module;
    dladdr(reinterpret_cast<const void*>(&CudaLibrary::get), &module);
    const std::string path(module.dli_fname);
    const std::string library = path.substr(0, path.rfind('/') + 1) + "libws_cuda.so";
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(std::string("no CUDA kernels: ") + dlerror());
    find(handle, "ws_cuda_forward", &forward);
    find(handle, "ws_cuda_backward", &backward);
    find(handle, "ws_cuda_error", &error);
    find(handle, "ws_cuda_forward_plan", &forward_plan);
    find(handle, "ws_cuda_backward_plan", &backward_plan);
    find(handle, "ws_cuda_toolkit", &toolkit);
    find(handle, "ws_cuda_architectures", &architectures);
  }

  template <class Function>
  static void find(void* handle, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr) throw std::runtime_error(std::string("libws_cuda.so lacks ") + name);
  }
};

}  // namespace ws
