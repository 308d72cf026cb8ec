// From weights to launches: the launch table's entry for each, and as few launches as hold them all.
//
// `launch` is what starts a kernel: CUDA's runtime, and in the tests its stand-in.
#pragma once

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "../api.h"
#include "../rows/row.cuh"
#include "batch.h"
#include "tiers.h"

namespace ws {

// The kernels of one pair of types in one direction, and the part of their table that hosts read.
template <class Args>
struct Kernels {
  int weight_bytes;  // of an element
  int out_bytes;
  int vec;  // elements that a vector access moves
  const Tier* tiers;
  int (*tier_of)(int64_t rows, int64_t cols, bool vector, bool flat);
  int moments_bytes;  // of a chunk of a split row
  // by threads of a block, and for few weights or for many
  void (*block_of_128)(Batch<Args, kSmallBytes>);
  void (*many_blocks_of_128)(Batch<Args, kLargeBytes>);
  void (*block_of_512)(Batch<Args, kSmallBytes>);
  // by the tier's access: vector or scalar
  void (*find_moments[2])(Split<Args>);
  void (*apply[2])(Split<Args>);
};

// A tensor of a call: what decides how it can be accessed.
struct Operand {
  const void* data;
  int bytes;  // of an element
  const Strides* strides;
};

// Whether every group of `vec` columns starts at a multiple of its size. If one tensor of a call
// does not allow it, none is accessed so, since threads hold the same columns of each.
inline bool allows_vectors(const Operand& tensor, int vec, const Shape& shape) {
  const bool dense = has_dense_rows(shape, *tensor.strides);
  return reinterpret_cast<uintptr_t>(tensor.data) % (vec * tensor.bytes) == 0 &&
         (shape.rows == 1 || tensor.strides->row % vec == 0) &&
         (dense ? shape.cols : shape.run) % vec == 0 && (dense || tensor.strides->run % vec == 0);
}

// Whether its rows lie one after another without gaps.
inline bool is_flat(const Operand& tensor, const Shape& shape) {
  return has_dense_rows(shape, *tensor.strides) &&
         (shape.rows == 1 || tensor.strides->row == shape.cols);
}

template <class Args>
std::array<Operand, 2> operands_of(const Forward& args, const Kernels<Args>& kernels) {
  return {{{args.weight, kernels.weight_bytes, &args.weight_strides},
           {args.out, kernels.out_bytes, &args.out_strides}}};
}

template <class Args>
std::array<Operand, 3> operands_of(const Backward& args, const Kernels<Args>& kernels) {
  return {{{args.grad, kernels.out_bytes, &args.grad_strides},
           {args.weight, kernels.weight_bytes, &args.weight_strides},
           {args.grad_weight, kernels.weight_bytes, &args.grad_weight_strides}}};
}

// How a weight is worked on.
template <class Args>
struct Planned {
  const Kernels<Args>* kernels;
  const Args* args;
  Tier tier;
  int index;       // of the tier
  int rows;        // that a block works on
  int64_t blocks;  // that its rows need
  int32_t chunks;  // of a split row, else 1
  int64_t chunk_cols;

  int64_t elements_of_block() const { return rows * std::min(args->shape.cols, chunk_cols); }
  int64_t moments_bytes() const { return tier.split ? blocks * kernels->moments_bytes : 0; }
};

template <class Args>
Planned<Args> plan_of(const Args& args, const Kernels<Args>& kernels) {
  bool vector = true, flat = true;
  for (const Operand& tensor : operands_of(args, kernels)) {
    vector = vector && allows_vectors(tensor, kernels.vec, args.shape);
    flat = flat && is_flat(tensor, args.shape);
  }
  const int64_t all_rows = args.shape.rows, cols = args.shape.cols;
  const int index = kernels.tier_of(all_rows, cols, vector, flat);
  const Tier& tier = kernels.tiers[index];
  int64_t rows = tier.threads() / tier.team * tier.rows, chunk_cols = cols, chunks = 1;
  if (tier.access == Access::kFlat)
    rows = (kernels.weight_bytes == 8 ? kTile<double> : kTile<float>) / cols;
  if (tier.split) {
    const int64_t tile = tier.team * tier.elements, tiles = (cols + tile - 1) / tile;
    chunk_cols = tile * ((tiles + kMaxChunks - 1) / kMaxChunks);
    chunks = (cols + chunk_cols - 1) / chunk_cols;
  }
  return {&kernels,
          &args,
          tier,
          index,
          static_cast<int>(rows),
          (all_rows + rows - 1) / rows * chunks,
          static_cast<int32_t>(chunks),
          chunk_cols};
}

template <class Args>
Plan described(const Planned<Args>& planned) {
  const Tier& tier = planned.tier;
  const char* const accesses[] = {"vector", "flat", "scalar"};
  return {tier.name,
          accesses[static_cast<int>(tier.access)],
          tier.max_cols(),
          tier.team,
          tier.elements,
          tier.rows,
          tier.access == Access::kScalar ? 1 : planned.kernels->vec,
          tier.threads(),
          planned.rows,
          planned.chunks,
          planned.blocks};
}

inline bool is_empty(const Shape& shape) { return shape.rows == 0 || shape.cols == 0; }

template <class Args>
std::vector<Planned<Args>> plan_all(const Work<Args>* work, int64_t count) {
  std::vector<Planned<Args>> plans;
  plans.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (is_empty(work[i].args->shape)) continue;
    plans.push_back(plan_of(*work[i].args, kernels_of(*work[i].args, work[i].types)));
  }
  return plans;
}

// The memory that split rows need between their two launches. They take turns with it.
template <class Args>
int64_t workspace_of(const std::vector<Planned<Args>>& plans) {
  int64_t bytes = 0;
  for (const auto& planned : plans) bytes = std::max(bytes, planned.moments_bytes());
  return bytes;
}

constexpr int64_t kMaxBlocks = INT32_MAX;  // of a grid: CUDA's limit

// One launch of plans[0], plans[1], ... as far as they fit; returns how many did.
template <int kBytes, class Args, class Kernel, class Launch>
int64_t launch_batch(Kernel kernel, const Planned<Args>* plans, int64_t count, Launch& launch) {
  Batch<Args, kBytes> batch;
  int64_t blocks = 0, taken = 0;
  for (; taken < count && taken < batch.kCapacity; ++taken) {
    const Planned<Args>& planned = plans[taken];
    if (taken > 0 && blocks + planned.blocks > kMaxBlocks) break;
    batch.entries[taken] = {*planned.args, planned.index, planned.rows};
    batch.first_block[taken] = static_cast<uint32_t>(blocks);
    blocks += planned.blocks;
  }
  batch.count = static_cast<int32_t>(taken);
  launch(kernel, blocks, plans[0].tier.threads(), batch);
  return taken;
}

template <class Args, class Launch>
void launch_split(const Planned<Args>& planned, void* workspace, Launch& launch) {
  const Split<Args> split{*planned.args, workspace, planned.chunk_cols, planned.chunks};
  const bool scalar = planned.tier.access == Access::kScalar;
  launch(planned.kernels->find_moments[scalar], planned.blocks, planned.tier.threads(), split);
  launch(planned.kernels->apply[scalar], planned.blocks, planned.tier.threads(), split);
}

// Weights with the same kernel share launches, those with the most work a block first: blocks start
// in order, and a long one that starts last keeps the others waiting. parameter_bytes: kSmallBytes or
// kLargeBytes, whichever launches allow.
template <class Args, class Launch>
void launch_all(std::vector<Planned<Args>> plans, int parameter_bytes, void* workspace,
                Launch launch) {
  const auto kernel_of = [](const Planned<Args>& p) {
    return std::make_pair(p.kernels, p.tier.split ? 2 : p.tier.threads() / 512);
  };
  std::stable_sort(plans.begin(), plans.end(), [&](const auto& a, const auto& b) {
    const auto first = kernel_of(a), second = kernel_of(b);
    return first != second ? first < second : a.elements_of_block() > b.elements_of_block();
  });
  for (size_t i = 0; i < plans.size();) {
    const Planned<Args>& planned = plans[i];
    if (planned.tier.split) {
      launch_split(planned, workspace, launch);
      ++i;
      continue;
    }
    int64_t same = 1;
    while (i + same < plans.size() && kernel_of(plans[i + same]) == kernel_of(planned)) ++same;
    constexpr int kFew = Batch<Args, kSmallBytes>::kCapacity;
    if (planned.tier.threads() == 512) {
      i += launch_batch<kSmallBytes>(planned.kernels->block_of_512, &planned, same, launch);
    } else if (same <= kFew || parameter_bytes < kLargeBytes) {
      i += launch_batch<kSmallBytes>(planned.kernels->block_of_128, &planned, same, launch);
    } else {
      i += launch_batch<kLargeBytes>(planned.kernels->many_blocks_of_128, &planned, same, launch);
    }
  }
}

}  // namespace ws
