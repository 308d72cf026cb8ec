// The CUDA library's C interface: the kernels on raw pointers, for callers without PyTorch's ops.
//
// Launches return at once. Arguments are taken as they are: pointers to memory of the device, and
// strides that stay inside it.
#pragma once

#include "../standardize.h"

#define WS_EXPORT __attribute__((visibility("default")))

namespace ws {

// How a weight is worked on: the entry of the launch table that its rows choose, and its blocks.
struct Plan {
  const char* name;
  const char* access;  // "vector", "flat" or "scalar"
  int64_t max_cols;    // the longest row that the entry is for
  int32_t team;        // threads that share a row
  int32_t elements;    // of a row that each of them holds at a time
  int32_t team_rows;   // that a team works on at a time
  int32_t vector;      // elements that an access moves: 1, or what 16 bytes hold
  int32_t threads;     // of a block
  int32_t rows;        // of a block
  int32_t chunks;      // blocks that share a row
  int64_t blocks;      // of the weight
};

}  // namespace ws

extern "C" {

// Takes bytes of the device that may be overwritten until the launches have ended.
using WsAllocate = void* (*)(void* context, int64_t bytes);

// As few launches as hold all weights; empty ones are left out. Very long rows need memory, asked for
// once: from `allocate` or, where that is null, from the stream. Return 0 or the code of a CUDA error.
WS_EXPORT int ws_cuda_forward(const ws::Work<ws::Forward>* work, int64_t count, int device,
                              void* stream, WsAllocate allocate, void* context);
WS_EXPORT int ws_cuda_backward(const ws::Work<ws::Backward>* work, int64_t count, int device,
                               void* stream, WsAllocate allocate, void* context);
WS_EXPORT const char* ws_cuda_error(int code);

// How a weight is worked on; null pointers count as aligned. A launch table is listed by asking for
// ever longer rows, from one entry's max_cols to the next.
WS_EXPORT ws::Plan ws_cuda_forward_plan(const ws::Forward* args, ws::Types types);
WS_EXPORT ws::Plan ws_cuda_backward_plan(const ws::Backward* args, ws::Types types);

// What the library was built with: the toolkit, as 1000 * major + 10 * minor, and the
// architectures, as "750,800,...".
WS_EXPORT int ws_cuda_toolkit();
WS_EXPORT const char* ws_cuda_architectures();

}  // extern "C"
