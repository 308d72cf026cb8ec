// The ops' host functions, the same for every device: check and allocate (arguments.h), then run.
//
// Device is made of a weight, whose device it stands for, and has run(work, count) for Work<Forward>
// and Work<Backward>.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"

namespace ws {

template <class Device>
Tensor forward(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
               int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction, bool center,
               double scale, std::optional<ScalarType> dtype) {
  const Device device(weight);
  ForwardCall call = prepare_forward(std::move(weight), std::move(gain), std::move(shift),
                                     channel_dim, eps, eps_mode, correction, center, scale, dtype);
  const Work<Forward> work{call.types, &call.args};
  device.run(&work, 1);
  return call.out;
}

template <class Device>
Tensor backward(Tensor grad, Tensor weight, std::optional<Tensor> gain, int64_t channel_dim,
                double eps, int64_t eps_mode, int64_t correction, bool center, double scale) {
  const Device device(weight);
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/false);
  const Work<Backward> work{call.types, &call.args};
  device.run(&work, 1);
  return call.grad_weight;
}

// The gradients of gain and shift too.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> backward_affine(Tensor grad, Tensor weight,
                                                   std::optional<Tensor> gain, int64_t channel_dim,
                                                   double eps, int64_t eps_mode, int64_t correction,
                                                   bool center, double scale) {
  const Device device(weight);
  BackwardCall call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim, eps,
                       eps_mode, correction, center, scale, /*affine=*/true);
  const Work<Backward> work{call.types, &call.args};
  device.run(&work, 1);
  return {call.grad_weight, *call.grad_gain, *call.grad_shift};
}

template <class Call>
auto work_of(const std::vector<Call>& calls) {
  std::vector<Work<decltype(Call::args)>> work;
  work.reserve(calls.size());
  for (const Call& call : calls) work.push_back({call.types, &call.args});
  return work;
}

template <class Device>
std::vector<Tensor> forward_many(std::vector<Tensor> weights,
                                 std::vector<std::optional<Tensor>> gains,
                                 std::vector<std::optional<Tensor>> shifts,
                                 std::vector<int64_t> channel_dims, std::vector<double> formulas,
                                 std::optional<ScalarType> dtype) {
  const auto calls = prepare_forward_many(weights, gains, shifts, channel_dims, formulas, dtype);
  if (calls.empty()) return {};
  const auto work = work_of(calls);
  Device(weights[0]).run(work.data(), work.size());
  std::vector<Tensor> outs;
  outs.reserve(calls.size());
  for (const ForwardCall& call : calls) outs.push_back(call.out);
  return outs;
}

template <class Device>
std::vector<Tensor> backward_many(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                  std::vector<std::optional<Tensor>> gains,
                                  std::vector<int64_t> channel_dims, std::vector<double> formulas,
                                  bool affine) {
  const auto calls = prepare_backward_many(grads, weights, gains, channel_dims, formulas, affine);
  if (calls.empty()) return {};
  const auto work = work_of(calls);
  Device(weights[0]).run(work.data(), work.size());
  return gradients_of(calls, affine);
}

}  // namespace ws
