// The CUDA library's C interface: the kernels on raw pointers, for callers without PyTorch's ops.
//
// Launches return at once. Arguments are taken as they are: pointers to memory of the device, and
// strides that stay inside it.
#pragma once

#include "../standardize.h"

#define WS_EXPORT __attribute__((visibility("default")))

namespace ws {

// How a call runs: the entry of the launch table that its row length and alignment choose, and the
// grid that its rows need.
struct Plan {
  const char* name;
  int64_t max_cols;    // the longest row that the entry is for
  int32_t team;        // threads that share a row
  int32_t elements;    // of a row that each of them holds at a time
  int32_t vector;      // elements that an access moves: 1, or what 16 bytes hold
  int32_t threads;     // of a block
  uint32_t blocks[2];  // of the grid, x and y
  const void* kernel;
};

}  // namespace ws

extern "C" {

// Return 0 or the code of a CUDA error.
WS_EXPORT int ws_cuda_forward(const ws::Forward* args, ws::Types types, int device, void* stream);
WS_EXPORT int ws_cuda_backward(const ws::Backward* args, ws::Types types, int device, void* stream);
WS_EXPORT const char* ws_cuda_error(int code);

// What the launch of these arguments would be; null pointers count as aligned. A launch table is
// listed by asking for ever longer rows, from one entry's max_cols to the next.
WS_EXPORT ws::Plan ws_cuda_forward_plan(const ws::Forward* args, ws::Types types);
WS_EXPORT ws::Plan ws_cuda_backward_plan(const ws::Backward* args, ws::Types types);

// What the library was built with: the toolkit, as 1000 * major + 10 * minor, and the
// architectures, as "750,800,...".
WS_EXPORT int ws_cuda_toolkit();
WS_EXPORT const char* ws_cuda_architectures();

}  // extern "C"
