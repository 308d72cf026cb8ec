// Weights on the CPU's threads: one parallel region over all their rows, split by bytes; rows that are
// not dense are gathered on the way.
#pragma once

#include "../standardize.h"

namespace ws {

// For every pass. `device` is there for the form of all devices' functions (torch/host.h).
template <class Args>
void run_on_cpu(const Work<Args>* work, int64_t count, int32_t device = -1);

}  // namespace ws
