#include "stand_in.h"

#include "../../../csrc/cuda/passes/update.cuh"
#include "run.h"

extern "C" const stand_in::Pass<ws::Update> update = stand_in::pass<ws::Update>();
