#include "stand_in.h"

#include "../../csrc/cuda/backward.cuh"
#include "run.h"

extern "C" {

int backward_bytes() { return sizeof(ws::Backward); }

ws::Plan backward_plan(const ws::Backward* args, ws::Types types) {
  return ws::backward_plan(*args, types);
}

const char* run_backward(const ws::Backward* args, const ws::Plan* plan, stand_in::Loads* loads) {
  return run(*args, *plan, loads);
}

}  // extern "C"
