// A weight on the CPU's threads: rows split by bytes, rows that are not dense gathered on the way.
#pragma once

#include "../standardize.h"

namespace ws {

WS_API void run_forward(Types types, const Forward& args);
WS_API void run_backward(Types types, const Backward& args);

}  // namespace ws
