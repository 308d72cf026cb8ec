#include "stand_in.h"

#include "../../../csrc/cuda/passes/backward.cuh"
#include "run.h"

extern "C" const stand_in::Pass<ws::Backward> backward = stand_in::pass<ws::Backward>();
