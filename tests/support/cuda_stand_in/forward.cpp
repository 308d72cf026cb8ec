#include "stand_in.h"

#include "../../../csrc/cuda/passes/forward.cuh"
#include "run.h"

extern "C" const stand_in::Pass<ws::Forward> forward = stand_in::pass<ws::Forward>();
