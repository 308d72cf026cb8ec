// The CUDA library's C interface: the kernels on raw pointers, for callers without PyTorch's ops.
#pragma once

#include <type_traits>

#include "../standardize.h"

namespace ws {

enum class Access : int32_t {
  kVector,  // 16 bytes at a time: pointers, strides and row lengths have to be multiples
  kFlat,    // 16 bytes at a time whatever the rows: they lie without gaps, and pass through shared
            // memory as one stretch
  kScalar,  // an element at a time: any strides
};

enum class Form : int32_t {
  kRows,     // a block has whole rows
  kCluster,  // a cluster of blocks shares a row, and reads it once: on chips from 9.0 on
  kSplit,    // any number of blocks share a row, in two launches that both read it; updates: four
};

// A row of a launch table: how rows of some lengths are worked on.
struct Tier {
  const char* name;
  Access access;
  Form form;
  int32_t team;       // threads that share a row, or a block's part of it
  int32_t elements;   // of a row that each of them holds at a time
  int32_t team_rows;  // that a team works on at a time

  // Of a block. Small teams share one, or the number of blocks that a multiprocessor can hold would
  // leave it half empty.
  constexpr int threads() const { return team < 128 ? 128 : team; }
  constexpr int64_t max_cols(int max_cluster) const {
    return form == Form::kSplit ? INT64_MAX
                                : team * elements * (form == Form::kCluster ? max_cluster : 1);
  }
};

// How one weight is worked on.
struct Plan {
  Tier tier;
  int32_t index;       // of the tier in its table
  int32_t vec;         // elements that an access moves: 1, or what 16 bytes hold
  int32_t rows;        // of a block
  int32_t resident;    // blocks that a multiprocessor can hold at once, at least
  int32_t chunks;      // blocks that share a row
  int64_t chunk_cols;  // of a row that a block works on
  int64_t blocks;      // of the weight
  int64_t weight;      // its number in the call
};

// Takes bytes of the device that may be overwritten until the launches have ended.
using Allocate = void* (*)(void* context, int64_t bytes);

// One pass. Arguments are taken as they are: pointers to memory of the device, and strides that stay
// inside it.
template <class Args>
struct CudaPass {
  // Launches, and returns at once: 0, or the code of a CUDA error. As few launches as hold all weights;
  // empty ones are left out. Very long rows need memory, asked for once: from `allocate` or, where
  // that is null, from the stream.
  int (*run)(const Work<Args>* work, int64_t count, int device, void* stream, Allocate allocate,
             void* context);
  // Null pointers count as aligned. max_cluster: blocks that a cluster of the chip can have, 1 before
  // 9.0. A launch table is listed by asking for ever longer rows, from one tier's max_cols to the next.
  Plan (*plan)(const Args& args, Types types, int max_cluster);
};

extern const CudaPass<Forward> kCudaForward;
extern const CudaPass<Backward> kCudaBackward;
extern const CudaPass<Norms> kCudaNorms;
extern const CudaPass<Update> kCudaUpdate;

struct CudaApi {
  const CudaPass<Forward>* forward;
  const CudaPass<Backward>* backward;
  const CudaPass<Norms>* norms;
  const CudaPass<Update>* update;
  const char* (*error)(int code);
  int toolkit;                // that the library was built with, as 1000 * major + 10 * minor
  const char* architectures;  // as "750,800,..."

  template <class Args>
  const CudaPass<Args>& pass() const {
    if constexpr (std::is_same_v<Args, Forward>) {
      return *forward;
    } else if constexpr (std::is_same_v<Args, Backward>) {
      return *backward;
    } else if constexpr (std::is_same_v<Args, Norms>) {
      return *norms;
    } else {
      return *update;
    }
  }
};

}  // namespace ws

extern "C" WS_API const ws::CudaApi ws_cuda;
