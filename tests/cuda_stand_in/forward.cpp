#include "stand_in.h"

#include "../../csrc/cuda/forward.cuh"
#include "run.h"

extern "C" {

int forward_bytes() { return sizeof(ws::Forward); }

ws::Plan forward_plan(const ws::Forward* args, ws::Types types) {
  return ws::forward_plan(*args, types);
}

const char* run_forward(const ws::Forward* args, const ws::Plan* plan, stand_in::Loads* loads) {
  return run(*args, *plan, loads);
}

}  // extern "C"
