// The norms kernels' launches.
#include "norms.cuh"

#include "../launch/runtime.h"

const ws::CudaPass<ws::Norms> ws::kCudaNorms = {run<Norms>, plan_of<Norms>};
