// The forward kernels' launches: the C interface, which the ops use too.
#include "forward.cuh"
#include "../launch/runtime.h"

int ws_cuda_forward(const ws::Work<ws::Forward>* work, int64_t count, int device, void* stream,
                    WsAllocate allocate, void* context) {
  return ws::run(work, count, device, stream, allocate, context);
}

ws::Plan ws_cuda_forward_plan(const ws::Forward* args, ws::Types types) {
  return ws::described(ws::plan_of(*args, ws::kernels_of(*args, types)));
}

const char* ws_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int ws_cuda_toolkit() { return CUDART_VERSION; }

#define WS_TEXT_OF(...) #__VA_ARGS__
#define WS_TEXT(...) WS_TEXT_OF(__VA_ARGS__)
const char* ws_cuda_architectures() { return WS_TEXT(__CUDA_ARCH_LIST__); }
