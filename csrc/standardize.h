// Weight standardization: what is computed, and the plain structs that every kernel takes.
//
// A weight is `rows` channels of `cols` elements. For every row, with `correction` c:
//
//   mean  = sum(w) / cols                              (0 when center is false)
//   var   = sum((w - mean)^2) / (cols - c)
//   d     = sqrt(var) + eps | sqrt(var + eps) | sqrt(max(var, eps))      by eps_mode
//   s     = scale / d
//   w_hat = s * (w - mean)
//   out   = gain * w_hat + shift                       (gain, shift: optional, one value a row)
//
// Backward, for the gradient `grad` of out, with k = ds/dvar (csrc/channel.h):
//
//   grad_weight = s * gain * (grad - mean(grad)) + (w - mean) * 2/(cols - c) * k * gain * dot
//   dot         = sum((grad - mean(grad)) * (w - mean))     (center false: mean(grad) := 0)
//   grad_gain   = s * dot                              grad_shift = sum(grad)
//
// Nothing is saved between the two but the weight: the backward kernels have each row in registers
// or cache anyway, so they compute its statistics again, which costs no memory traffic.
//
// This header is free of torch, CUDA and the standard library's templates, so that files compiled
// for one instruction set can include it.
#pragma once

#include <cstdint>

// Functions of libws.so that the pybind11 module calls.
#define WS_API __attribute__((visibility("default")))

namespace ws {

enum class EpsMode : int32_t { kStd = 0, kVar = 1, kClamp = 2 };

struct Formula {
  double eps;
  double scale;
  int64_t correction;
  EpsMode eps_mode;
  bool center;
};

// A formula as callers give it, not checked yet.
struct Numbers {
  double eps;
  int64_t eps_mode;
  int64_t correction;
  bool center;
  double scale;
};

// The (weight, out) element types that have a kernel. grad has out's type; grad_weight, gain, shift
// and their gradients have the weight's. Statistics are float32, for float64 weights float64.
enum Types : int32_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF32ToF16,
  kF32ToBF16,
  kTypesCount,
};

// One weight as rows of runs: a row is cols / run runs of `run` contiguous elements. Whatever is
// dense within a channel has run == cols; the weight of a transposed convolution (channel_dim 1)
// has its kernel's size as run. Rows are permuted freely, since statistics do not see the order.
struct Shape {
  int64_t rows;
  int64_t cols;
  int64_t run;
};

// In elements: from one row to the next, and from one run of a row to its next. Unlike `Shape`,
// they may differ between the tensors of one call (a sliced weight has a dense result).
struct Strides {
  int64_t row;
  int64_t run;
};

// A tensor [rows, cols] of a pass. Those that a pass only reads may lie in read-only memory.
struct Operand {
  void* data;
  Strides strides;
};

// The passes' arguments: what tensors a pass has is said here alone. Operands and vectors are listed
// results first. Result number n may lie where input number n does, since a row is read before it is
// written. A vector [rows] of the weight's type may be null.

struct Forward {
  enum : int { kOut, kWeight, kOperands };
  enum : int { kGain, kShift, kVectors };
  static constexpr int kResults = 1, kVectorResults = 0;
  static constexpr bool kOfOut[kOperands] = {true, false};  // has out's type, and not the weight's

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
};

struct Backward {
  enum : int { kGradWeight, kWeight, kGrad, kOperands };
  enum : int { kGradGain, kGradShift, kGain, kVectors };
  static constexpr int kResults = 1, kVectorResults = 2;
  static constexpr bool kOfOut[kOperands] = {false, false, true};

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
};

template <class Args>
constexpr int kInputs = Args::kOperands - Args::kResults;

// The bytes of an element, of a weight and of its out.
constexpr int kElementBytes[kTypesCount][2] = {{8, 8}, {4, 4}, {2, 2}, {2, 2}, {4, 2}, {4, 2}};

template <class Args>
constexpr int bytes_of(Types types, int operand) {
  return kElementBytes[types][Args::kOfOut[operand]];
}

// One weight of a call that takes many.
template <class Args>  // Forward or Backward
struct Work {
  Types types;
  const Args* args;
};

}  // namespace ws
