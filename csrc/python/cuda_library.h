// libws_cuda.so as the pybind11 module sees it: found beside the module, and loaded when the first
// CUDA array comes, so that everything else works on machines without CUDA.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "../cuda/api.h"

namespace ws {

inline const CudaApi* load_cuda_api() {
  Dl_info module;
  dladdr(reinterpret_cast<const void*>(&load_cuda_api), &module);
  const std::string path(module.dli_fname);
  const std::string library = path.substr(0, path.rfind('/') + 1) + "libws_cuda.so";
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* api = handle == nullptr ? nullptr : dlsym(handle, "ws_cuda");
  if (api == nullptr) throw std::runtime_error(std::string("no CUDA kernels: ") + dlerror());
  return static_cast<const CudaApi*>(api);
}

// Throws with the loader's reason where there is no such library.
inline const CudaApi& cuda_api() {
  static const CudaApi* const api = load_cuda_api();
  return *api;
}

}  // namespace ws
