#include "stand_in.h"

#include "../../csrc/cuda/passes/backward.cuh"
#include "run.h"

extern "C" {

int backward_bytes() { return sizeof(ws::Backward); }

ws::Plan backward_plan(const ws::Backward* args, ws::Types types) {
  return ws::described(ws::plan_of(*args, ws::kernels_of(*args, types)));
}

int backward_capacity(bool large) {
  return large ? ws::Batch<ws::Backward, ws::kLargeBytes>::kCapacity
               : ws::Batch<ws::Backward, ws::kSmallBytes>::kCapacity;
}

const char* run_backward(const ws::Work<ws::Backward>* work, int64_t count, int parameter_bytes,
                         stand_in::Record* record) {
  return stand_in::run(work, count, parameter_bytes, record);
}

}  // extern "C"
