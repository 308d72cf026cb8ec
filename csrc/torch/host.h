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

// prepare(i) is call number i of `count`. All are prepared before any runs.
template <class Args, class Prepare>
std::vector<Call<Args>> run_all(Run<Args> run, size_t count, Prepare prepare) {
  std::vector<Call<Args>> calls;
  std::vector<Work<Args>> work;
  calls.reserve(count);
  work.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    calls.push_back(prepare(i));
    work.push_back({calls[i].types, &calls[i].args});
  }
  if (count > 0) run(work.data(), count, calls[0].operands[0].get_device_index());
  return calls;
}

// Result after result, each of all calls.
template <class Args>
std::vector<Tensor> results_of(std::vector<Call<Args>> calls) {
  std::vector<Tensor> results;
  results.reserve(calls.size() * (Args::kResults + Args::kVectorResults));
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
  return results_of(run_all(run, weights.size(), [&](size_t i) {
    return prepare_forward(weights[i], gains[i], shifts[i], channel_dims[i],
                           numbers_of(formulas, i), dtype);
  }));
}

// Into memory that is there.
template <Run<Forward> run>
void forward_into(std::vector<Tensor> outs, std::vector<Tensor> weights,
                  std::vector<std::optional<Tensor>> gains,
                  std::vector<std::optional<Tensor>> shifts, std::vector<int64_t> channel_dims,
                  std::vector<double> formulas) {
  check_lists(weights, {outs.size(), gains.size(), shifts.size(), channel_dims.size()}, formulas);
  run_all(run, weights.size(), [&](size_t i) {
    return prepare_forward(weights[i], gains[i], shifts[i], channel_dims[i],
                           numbers_of(formulas, i), outs[i].scalar_type(), outs[i]);
  });
}

template <Run<Backward> run>
std::vector<Tensor> backward_many(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                  std::vector<std::optional<Tensor>> gains,
                                  std::vector<int64_t> channel_dims, std::vector<double> formulas,
                                  bool affine) {
  check_lists(weights, {grads.size(), gains.size(), channel_dims.size()}, formulas);
  return results_of(run_all(run, weights.size(), [&](size_t i) {
    return prepare_backward(grads[i], weights[i], gains[i], channel_dims[i],
                            numbers_of(formulas, i), affine);
  }));
}

// The gradients of the weights replace grads.
template <Run<Backward> run>
std::vector<Tensor> backward_in_place(std::vector<Tensor> grads, std::vector<Tensor> weights,
                                      std::vector<std::optional<Tensor>> gains,
                                      std::vector<int64_t> channel_dims,
                                      std::vector<double> formulas, bool affine) {
  check_lists(weights, {grads.size(), gains.size(), channel_dims.size()}, formulas);
  std::vector<Tensor> results = results_of(run_all(run, weights.size(), [&](size_t i) {
    return prepare_backward(grads[i], weights[i], gains[i], channel_dims[i],
                            numbers_of(formulas, i), affine, /*in_place=*/true);
  }));
  results.erase(results.begin(), results.begin() + grads.size());
  return results;
}

template <Run<Norms> run>
std::vector<Tensor> norms_many(std::vector<Tensor> grads, std::vector<Tensor> weights,
                               std::vector<std::optional<Tensor>> gains,
                               std::vector<int64_t> channel_dims, std::vector<double> formulas,
                               bool affine) {
  check_lists(weights, {grads.size(), gains.size(), channel_dims.size()}, formulas);
  return results_of(run_all(run, weights.size(), [&](size_t i) {
    return prepare_norms(grads[i], weights[i], gains[i], channel_dims[i], numbers_of(formulas, i),
                         affine);
  }));
}

template <Run<Update> run>
void update_many(std::vector<Tensor> outs, std::vector<Tensor> weights, std::vector<Tensor> states,
                 std::vector<Tensor> grads, std::vector<std::optional<Tensor>> gains,
                 std::vector<std::optional<Tensor>> new_gains,
                 std::vector<std::optional<Tensor>> new_shifts,
                 std::vector<std::optional<Tensor>> factors, std::vector<int64_t> channel_dims,
                 std::vector<double> formulas, std::vector<double> rule_numbers,
                 std::vector<int64_t> flags, std::vector<double> clips, std::vector<Tensor> steps,
                 std::optional<Tensor> lr, std::optional<Tensor> grad_scale,
                 std::optional<Tensor> found_inf) {
  const Rule rule = checked_rule(rule_numbers);
  const size_t count = weights.size();
  const size_t state_count = count == 0 ? 0 : states.size() / count;
  check_lists(weights,
              {outs.size(), grads.size(), gains.size(), new_gains.size(), new_shifts.size(),
               factors.size(), channel_dims.size(), flags.size(), clips.size()},
              formulas);
  check_states(rule, count, states.size(), steps.size());
  run_all(run, count, [&](size_t i) {
    const Tensor& weight = weights[i];
    Tensor operands[Update::kOperands] = {outs[i], weight};
    for (size_t k = 0; k < state_count; ++k) {
      operands[Update::kFirst + k] = states[i * state_count + k];
    }
    operands[Update::kGrad] = grads[i];
    Rule own = with_flags(rule, flags[i], clips[i]);
    if (rule.adam) set_step(own, steps[i], weight);
    own.factor = checked_number(factors[i], "factor", weight);
    own.lr_at = checked_number(lr, "lr", weight);
    own.grad_scale = checked_number(grad_scale, "grad_scale", weight);
    own.found_inf = checked_number(found_inf, "found_inf", weight);
    return prepare_update(std::move(operands), gains[i], new_gains[i], new_shifts[i],
                          channel_dims[i], numbers_of(formulas, i), own);
  });
}

}  // namespace ws
