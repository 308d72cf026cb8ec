// A step of torch.optim's SGD, Adam or AdamW, written once for an element and for a vector of them, in
// PyTorch's order of operations (torch/optim/sgd.py and adam.py, their single-tensor forms).
//
//   g       = grad * factor / grad_scale
//   limit   = clip * max(|w|, clip_eps)              over the row; clip 0: none
//   g       = g * limit / max(|g|, 1e-6)             where |g| >= limit, as timm's adaptive_clip_grad
//   g       = -g                                     maximize
//   g       = g + weight_decay * w                   decoupled: w = w * (1 - lr * weight_decay)
//
//   SGD     first   = momentum * first + (1 - dampening) * g         is_first: first = g
//           w       = w - lr * first    nesterov: g + momentum * first    no momentum: g
//
//   Adam    first   = first + (1 - beta1) * (g - first)
//           second  = beta2 * second + (1 - beta2) * g^2
//           largest = max(largest, second)           with amsgrad, and sqrt(largest) below
//           w       = w - lr / (1 - beta1^step) * first /
//                         (sqrt(second) / sqrt(1 - beta2^step) + eps)
//
// For vectors, the including file declares square_root and multiply_add before this one. All is in an
// unnamed namespace, as in channel.h.
#pragma once

#include "channel.h"

namespace ws {
namespace {

// a * b + c, rounded once.
WS_DEVICE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
WS_DEVICE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

// a / b and sqrt(x). On a GPU to 2 units in the last place: exact ones call a function for some numbers,
// and registers are too few for that.
template <class V, class A>
WS_DEVICE V divide(V a, A b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(V) == sizeof(float)) return __fdividef(a, b);
#endif
  return a / b;
}

template <class V>
WS_DEVICE V root_of(V x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(V) == sizeof(float)) {
    asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
    return x;
  }
#endif
  return square_root(x);
}

// beta^step. On a GPU by multiplications, for the same reason.
WS_DEVICE double power(double beta, double step) {
#ifdef __CUDA_ARCH__
  double result = 1;
  for (auto n = static_cast<unsigned>(step); n > 0; n /= 2, beta *= beta) {
    if (n % 2 == 1) result *= beta;
  }
  return result;
#else
  return __builtin_pow(beta, step);
#endif
}

// A rule's numbers, in the type of the statistics.
template <class A>
struct Step {
  A scale;  // of the gradient, by factor, grad_scale and maximize
  A clip, clip_eps;
  A weight_decay;  // 0 if it is decoupled, and then in keep
  A keep;
  A lr;                      // Adam: divided by 1 - beta1^step
  A old_first, new_first;    // momentum and 1 - dampening; Adam: new_first = 1 - beta1
  A old_second, new_second;  // beta2 and 1 - beta2
  A root;                    // sqrt(1 - beta2^step)
  A eps;
  bool adam, nesterov, is_first, has_momentum;
};

template <class A>
WS_DEVICE Step<A> step_of(const Rule& rule) {
  const auto number = [](double x) { return static_cast<A>(x); };
  const double lr = rule.lr_at ? *rule.lr_at : rule.lr;
  const double factor = rule.factor ? *rule.factor : 1.0;
  const double scale = rule.grad_scale ? factor / *rule.grad_scale : factor;
  Step<A> by{};
  by.scale = number(rule.maximize ? -scale : scale);
  by.clip = number(rule.clip);
  by.clip_eps = number(rule.clip_eps);
  by.weight_decay = number(rule.decoupled ? 0.0 : rule.weight_decay);
  by.keep = number(rule.decoupled ? 1 - lr * rule.weight_decay : 1.0);
  by.adam = rule.adam;
  if (rule.adam) {
    const double step = rule.step_at ? *rule.step_at : rule.step;
    by.lr = number(lr / (1 - power(rule.beta1, step)));
    by.new_first = number(1 - rule.beta1);
    by.old_second = number(rule.beta2);
    by.new_second = number(1 - rule.beta2);
    by.root = number(__builtin_sqrt(1 - power(rule.beta2, step)));
    by.eps = number(rule.eps);
  } else {
    by.lr = number(lr);
    by.old_first = number(rule.momentum);
    by.new_first = number(1 - rule.dampening);
    by.nesterov = rule.nesterov;
    by.is_first = rule.is_first;
    by.has_momentum = rule.momentum != 0;
  }
  return by;
}

// Step::scale, times what the clipping of a row makes of it; from the row's sums of squares.
template <class A>
WS_DEVICE A clipped_scale(const Step<A>& by, A squares_w, A squares_grad) {
  const A norm_w = square_root(squares_w);
  const A norm = square_root(squares_grad) * (by.scale < 0 ? -by.scale : by.scale);
  const A limit = by.clip * (norm_w < by.clip_eps ? by.clip_eps : norm_w);
  // NaN, of which no comparison is true, has to reach the whole row.
  return norm < limit ? by.scale : by.scale * (limit / (norm < A(1e-6) ? A(1e-6) : norm));
}

// V: A, or a vector of it. Of the states, those that the rule lacks are left alone.
template <class V, class A>
WS_DEVICE void take_step(const Step<A>& by, A scale, bool amsgrad, V grad, V& w, V& first,
                         V& second, V& largest) {
  const V one = V{} + 1;
  V g = grad * scale;
  if (by.weight_decay != 0) g = multiply_add(w, one * by.weight_decay, g);
  w *= by.keep;
  if (!by.adam) {
    if (by.has_momentum) {
      first = by.is_first ? g : multiply_add(g, one * by.new_first, first * by.old_first);
      g = by.nesterov ? multiply_add(first, one * by.old_first, g) : first;
    }
    w = multiply_add(g, one * -by.lr, w);
    return;
  }
  // From the nearer end, as torch.lerp does.
  first = by.new_first < A(0.5) ? multiply_add(g - first, one * by.new_first, first)
                                : multiply_add(g - first, one * (by.new_first - 1), g);
  second = multiply_add(g * by.new_second, g, second * by.old_second);
  if (amsgrad) largest = (second > largest) | (second != second) ? second : largest;
  const V root = root_of(amsgrad ? largest : second);
  w += divide(first * -by.lr, divide(root, by.root) + by.eps);
}

}  // namespace
}  // namespace ws
