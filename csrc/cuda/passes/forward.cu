// The forward kernels' launches.
#include "forward.cuh"

#include "../launch/runtime.h"

const ws::CudaPass<ws::Forward> ws::kCudaForward = {run<Forward>, plan_of<Forward>};
