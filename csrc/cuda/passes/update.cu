// The update kernels' launches.
#include "update.cuh"

#include "../launch/runtime.h"

const ws::CudaPass<ws::Update> ws::kCudaUpdate = {run<Update>, plan_of<Update>};
