// The CUDA library's C interface: kernels on raw pointers, for callers without PyTorch's operators.
//
// Everything runs on the given device and stream and returns at once. Pointers are device memory;
// shapes and strides are taken as they are, so whoever calls has checked them.
#pragma once

#include "../standardize.h"

#define WS_EXPORT __attribute__((visibility("default")))

namespace ws {

// How a call runs: the entry of the launch table that its row length chooses, and the grid.
struct Plan {
  const char* name;
  int64_t max_cols;    // the longest row that the entry is for
  int32_t team;        // threads that share a row
  int32_t elements;    // of a row that each of them holds at a time
  int32_t vector;      // elements that an access moves: 1, or as many as 16 bytes hold
  int32_t threads;     // of a block
  uint32_t blocks[2];  // of the grid, x and y
  const void* kernel;
};

}  // namespace ws

extern "C" {

// Launch; 0, or the code of a CUDA error. Nothing is launched for a weight of no elements.
WS_EXPORT int ws_cuda_forward(const ws::Forward* args, ws::Types types, int device, void* stream);
WS_EXPORT int ws_cuda_backward(const ws::Backward* args, ws::Types types, int device, void* stream);
WS_EXPORT const char* ws_cuda_error(int code);

// What the launch of these arguments would be.
WS_EXPORT ws::Plan ws_cuda_forward_plan(const ws::Forward* args, ws::Types types);
WS_EXPORT ws::Plan ws_cuda_backward_plan(const ws::Backward* args, ws::Types types);

// The launch tables' number of entries, and the longest row of each: rows of that many columns, and
// of one more, are where one kernel takes over from another.
WS_EXPORT int ws_cuda_tiers();
WS_EXPORT int64_t ws_cuda_forward_max_cols(ws::Types types, int tier);
WS_EXPORT int64_t ws_cuda_backward_max_cols(ws::Types types, int tier);

// What the library was built with: the toolkit's version as 1000 * major + 10 * minor, and the
// architectures' as "750,800,...".
WS_EXPORT int ws_cuda_toolkit();
WS_EXPORT const char* ws_cuda_architectures();

}
