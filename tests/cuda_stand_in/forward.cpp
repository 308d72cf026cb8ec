#include "stand_in.h"

#include "../../csrc/cuda/passes/forward.cuh"
#include "run.h"

extern "C" {

int forward_bytes() { return sizeof(ws::Forward); }

ws::Plan forward_plan(const ws::Forward* args, ws::Types types) {
  return ws::described(ws::plan_of(*args, ws::kernels_of(*args, types)));
}

int forward_capacity(bool large) {
  return large ? ws::Batch<ws::Forward, ws::kLargeBytes>::kCapacity
               : ws::Batch<ws::Forward, ws::kSmallBytes>::kCapacity;
}

const char* run_forward(const ws::Work<ws::Forward>* work, int64_t count, int parameter_bytes,
                        stand_in::Record* record) {
  return stand_in::run(work, count, parameter_bytes, record);
}

}  // extern "C"
