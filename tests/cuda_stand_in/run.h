// One launch of a kernel as its plan says, for ctypes.
#pragma once

#include "../../csrc/cuda/api.h"
#include "stand_in.h"

// Returns what went wrong, or "".
template <class Args>
const char* run(const Args& args, const ws::Plan& plan, stand_in::Loads* loads) {
  const auto kernel = reinterpret_cast<void (*)(Args)>(const_cast<void*>(plan.kernel));
  static std::string error;
  stand_in::Launch launch;
  error = launch.run(dim3(plan.blocks[0], plan.blocks[1]), plan.threads, [&] { kernel(args); });
  *loads = launch.loads;
  return error.c_str();
}
