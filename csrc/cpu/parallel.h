// Weights on the CPU's threads: one parallel region over all their rows, split by bytes; rows that are
// not dense are gathered on the way.
#pragma once

#include "../standardize.h"

namespace ws {

WS_API void run_forward(const Work<Forward>* work, int64_t count);
WS_API void run_backward(const Work<Backward>* work, int64_t count);

}  // namespace ws
