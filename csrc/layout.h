// From a tensor's strides to the rows and runs that the kernels walk (Shape, Strides).
#pragma once

#include "standardize.h"

namespace ws {

// Callers refuse more. It is NumPy's limit, and that of PyTorch's reductions.
constexpr int64_t kMaxDims = 64;

// A tensor's sizes [dim] and strides [dim], in elements.
struct View {
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
};

// True if the elements fill their memory without gaps, in whatever order of the dimensions.
bool is_dense(const View& view);

// Describes `count` tensors of one shape as rows along channel_dim, their elements in the same
// order in each. views[0], a result, decides the order: a row is walked as its memory lies.
//
// Returns count on success; otherwise the index of a tensor that does not fit and has to be copied
// into views[0]'s strides. 0 means that the result itself cannot be described.
WS_API int match_layout(const View* views, int count, int64_t channel_dim, Shape* shape,
                        Strides* strides);

}  // namespace ws
