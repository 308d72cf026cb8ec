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
// Norms writes sum(grad_weight^2) of each row in the place of grad_weight. Update takes a step of an
// optimizer with grad_weight (csrc/update.h) and makes the out of the weight that comes of it.
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

// The (weight, out) element types that have a kernel. grad has out's type, and where several have
// been summed up, the weight's; grad_weight, gain, shift and their gradients have the weight's.
// Statistics are float32, for float64 weights float64.
//
// Update has no kernels for 16-bit weights, and only Update has those of sums.
enum Types : int32_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF32ToF16,
  kF32ToBF16,
  kF32ToF16Sum,
  kF32ToBF16Sum,
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

// Whose type an operand's elements have.
enum class Of : int32_t { kWeight, kOut, kGrad };

// The passes' arguments: what tensors a pass has is said here alone. Of the operands, those before
// kResults are written, and those from kFirstInput on are read: what is both is worked on in place.
// One that is only written may lie where the input of its number does, if that is only read, since a
// row is read before it is written. Vectors [rows] of the weight's type are listed results first, and
// may be null.

struct Forward {
  enum : int { kOut, kWeight, kOperands };
  enum : int { kGain, kShift, kVectors };
  static constexpr int kResults = 1, kFirstInput = 1, kVectorResults = 0;
  static constexpr Of kOf[kOperands] = {Of::kOut, Of::kWeight};

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
};

struct Backward {
  enum : int { kGradWeight, kWeight, kGrad, kOperands };
  enum : int { kGradGain, kGradShift, kGain, kVectors };
  static constexpr int kResults = 1, kFirstInput = 1, kVectorResults = 2;
  static constexpr Of kOf[kOperands] = {Of::kWeight, Of::kWeight, Of::kGrad};

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
};

struct Norms {
  enum : int { kWeight, kGrad, kOperands };
  enum : int { kSquaredNorm, kGradGain, kGradShift, kGain, kVectors };
  static constexpr int kResults = 0, kFirstInput = 0, kVectorResults = 3;
  static constexpr Of kOf[kOperands] = {Of::kWeight, Of::kGrad};

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
};

// A step of torch.optim's SGD, Adam or AdamW for one weight (csrc/update.h). What the host may not
// know yet is a pointer to one number in the device's memory, or null.
struct Rule {
  double lr, weight_decay;
  double momentum, dampening;  // SGD's
  double beta1, beta2, eps;    // Adam's
  double step;                 // Adam's: the number of the step, from 1
  double clip, clip_eps;       // adaptive gradient clipping; clip 0: none
  bool adam;
  bool nesterov;   // SGD's
  bool decoupled;  // AdamW's weight decay
  bool maximize;
  bool is_first;            // SGD: there is no momentum yet, whatever its memory holds
  bool is_true;             // grad is that of the weight itself, and not of its out
  const float* lr_at;       // in the place of lr
  const float* step_at;     // in the place of step
  const float* factor;      // multiplies the gradient
  const float* grad_scale;  // divides it
  const float* found_inf;   // if not 0, nothing is written
};

struct Update {
  // kOut: what the updated weight standardizes to. kFirst: SGD's momentum_buffer or Adam's exp_avg;
  // kSecond, kLargest: exp_avg_sq and max_exp_avg_sq. Null is what the rule lacks.
  enum : int { kOut, kWeight, kFirst, kSecond, kLargest, kGrad, kOperands };
  // kGain: of the out that grad is the gradient of; kNewGain, kNewShift: of the new one
  enum : int { kGain, kNewGain, kNewShift, kVectors };
  static constexpr int kResults = 5, kFirstInput = 1, kVectorResults = 0;
  static constexpr Of kOf[kOperands] = {Of::kOut,    Of::kWeight, Of::kWeight,
                                        Of::kWeight, Of::kWeight, Of::kGrad};

  Shape shape;
  Formula formula;
  Operand operands[kOperands];
  void* vectors[kVectors];
  Rule rule;
};

template <class Args>
constexpr int kInputs = Args::kOperands - Args::kFirstInput;

// The bytes of an element, by Types and Of.
constexpr int kElementBytes[kTypesCount][3] = {{8, 8, 8}, {4, 4, 4}, {2, 2, 2}, {2, 2, 2},
                                               {4, 2, 2}, {4, 2, 2}, {4, 2, 4}, {4, 2, 4}};

template <class Args>
constexpr int bytes_of(Types types, int operand) {
  return kElementBytes[types][static_cast<int>(Args::kOf[operand])];
}

// One weight of a call that takes many.
template <class Args>
struct Work {
  Types types;
  const Args* args;
};

}  // namespace ws
