// The table of the C interface.
#include "api.h"

#include <cuda_runtime.h>

#define WS_TEXT_OF(...) #__VA_ARGS__
#define WS_TEXT(...) WS_TEXT_OF(__VA_ARGS__)

const ws::CudaApi ws_cuda = {
    &ws::kCudaForward,
    &ws::kCudaBackward,
    &ws::kCudaNorms,
    &ws::kCudaUpdate,
    [](int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); },
    CUDART_VERSION,
    WS_TEXT(__CUDA_ARCH_LIST__),
};
