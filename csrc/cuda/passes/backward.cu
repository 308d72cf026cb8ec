// The backward kernels' launches: the C interface, which the ops use too.
#include "backward.cuh"
#include "../launch/runtime.h"

int ws_cuda_backward(const ws::Work<ws::Backward>* work, int64_t count, int device, void* stream,
                     WsAllocate allocate, void* context) {
  return ws::run(work, count, device, stream, allocate, context);
}

ws::Plan ws_cuda_backward_plan(const ws::Backward* args, ws::Types types) {
  return ws::described(ws::plan_of(*args, ws::kernels_of(*args, types)));
}
