#include "stand_in.h"

#include "../../../csrc/cuda/passes/norms.cuh"
#include "run.h"

extern "C" const stand_in::Pass<ws::Norms> norms = stand_in::pass<ws::Norms>();
