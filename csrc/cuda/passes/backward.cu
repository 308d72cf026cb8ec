// The backward kernels' launches.
#include "backward.cuh"

#include "../launch/runtime.h"

const ws::CudaPass<ws::Backward> ws::kCudaBackward = {run<Backward>, plan_of<Backward>};
