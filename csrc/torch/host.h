// The ops' host functions, the same for every device: check and allocate (arguments.h), then run.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"

namespace ws {

// What a device does with calls; `device` is its number.
template <class Args>
using Run = void (*)(const Work<Args>* work, int64_t count, int32_t device);

template <Run<Forward> run>
Tensor forward(Tensor weight, std::optional<Tensor> gain, std::optional<Tensor> shift,
               int64_t channel_dim, double eps, int64_t eps_mode, int64_t correction, bool center,
               double scale, std::optional<ScalarType> dtype) {
  Call<Forward> call =
      prepare_forward(std::move(weight), std::move(gain), std::move(shift), channel_dim,
                      {eps, eps_mode, correction, center, scale}, dtype);
  const Work<Forward> work{call.types, &call.args};
  run(&work, 1, call.operands[0].get_device_index());
  return std::move(call.operands[Forward::kOut]);
}

template <Run<Backward> run>
Tensor backward(Tensor grad, Tensor weight, std::optional<Tensor> gain, int64_t channel_dim,
                double eps, int64_t eps_mode, int64_t correction, bool center, double scale) {
  Call<Backward> call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim,
                       {eps, eps_mode, correction, center, scale}, /*affine=*/false);
  const Work<Backward> work{call.types, &call.args};
  run(&work, 1, call.operands[0].get_device_index());
  return std::move(call.operands[Backward::kGradWeight]);
}

// The gradients of gain and shift too.
template <Run<Backward> run>
std::tuple<Tensor, Tensor, Tensor> backward_affine(Tensor grad, Tensor weight,
                                                   std::optional<Tensor> gain, int64_t channel_dim,
                                                   double eps, int64_t eps_mode, int64_t correction,
                                                   bool center, double scale) {
  Call<Backward> call =
      prepare_backward(std::move(grad), std::move(weight), std::move(gain), channel_dim,
                       {eps, eps_mode, correction, center, scale}, /*affine=*/true);
  const Work<Backward> work{call.types, &call.args};
  run(&work, 1, call.operands[0].get_device_index());
  return {std::move(call.operands[Backward::kGradWeight]),
          std::move(*call.vectors[Backward::kGradGain]),
          std::move(*call.vectors[Backward::kGradShift])};
}

// prepare(i) is call number i of `count`. Returns result after result, each of all calls.
template <class Args, class Prepare>
std::vector<Tensor> run_many(Run<Args> run, size_t count, Prepare prepare) {
  if (count == 0) return {};
  std::vector<Call<Args>> calls;
  std::vector<Work<Args>> work;
  calls.reserve(count);
  work.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    calls.push_back(prepare(i));
    work.push_back({calls[i].types, &calls[i].args});
  }
  run(work.data(), count, calls[0].operands[0].get_device_index());
  std::vector<Tensor> results;
  results.reserve(count * (Args::kResults + Args::kVectorResults));
  for (int k = 0; k < Args::kResults; ++k) {
    for (Call<Args>& call : calls) results.push_back(std::move(call.operands[k]));
  }
  for (int k = 0; k < Args::kVectorResults; ++k) {
    for (Call<Args>& call : calls) {
      if (call.vectors[k]) results.push_back(std::move(*call.vectors[k]));
    }
  }
  return results;
}

template <Run<Forward> run>
std::vector<Tensor> forward_many(std::vector<Tensor> weights,
                                 std::vector<std::optional<Tensor>> gains,
                                 std::vector<std::optional<Tensor>> shifts,
                                 std::vector<int64_t> channel_dims, std::vector<double> formulas,
                                 std::optional<ScalarType> dtype) {
  check_lists(weights, {gains.size(), shifts.size(), channel_dims.size()}, formulas);
  return run_many(run, weights.size(), [&](size_t i) {
    return prepare_forward(weights[i], gains[i], shifts[i], channel_dims[i],
                           numbers_of(formulas, i), dtype);
  });
}

template <Run<Backward> run>
std::vector<Tensor> backward_many(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                  std::vector<std::optional<Tensor>> gains,
                                  std::vector<int64_t> channel_dims, std::vector<double> formulas,
                                  bool affine) {
  check_lists(weights, {grads.size(), gains.size(), channel_dims.size()}, formulas);
  return run_many(run, weights.size(), [&](size_t i) {
    return prepare_backward(grads[i], weights[i], gains[i], channel_dims[i],
                            numbers_of(formulas, i), affine);
  });
}

}  // namespace ws
