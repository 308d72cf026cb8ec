// From weights to launches: the launch table's tier for each, and as few launches as hold them all.
//
// `launch` is what starts a kernel: CUDA's runtime, and in the tests its stand-in.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "../api.h"
#include "../rows/row.cuh"
#include "batch.h"
#include "tiers.h"

namespace ws {

// The kernels of one pair of types in one pass, and the part of their table that hosts read.
template <class Args>
struct Kernels {
  int vec;  // elements that a vector access moves
  const Tier* tiers;
  int (*tier_of)(int64_t rows, int64_t cols, bool vector, bool flat, int max_cluster);
  int resident;       // threads that a multiprocessor holds at once
  int moments_bytes;  // of a chunk of a split row
  // by threads of a block, and for few weights (null where a step's weights are always many) or for many
  void (*block_of_128)(Batch<Args, kSmallBytes>);
  void (*many_blocks_of_128)(Batch<Args, kLargeBytes>);
  void (*block_of_256)(Batch<Args, kSmallBytes>);
  void (*block_of_512)(Batch<Args, kSmallBytes>);
  void (*cluster)(Split<Args>);
  // by the tier's access, vector or scalar: launches of split rows, as many as the pass has
  void (*split[2][4])(Split<Args>);
};

// Whether every group of `vec` columns starts at a multiple of its size. If one tensor of a call
// does not allow it, none is accessed so, since threads hold the same columns of each.
inline bool allows_vectors(const Operand& tensor, int bytes, int vec, const Shape& shape) {
  const bool dense = has_dense_rows(shape, tensor.strides);
  return reinterpret_cast<uintptr_t>(tensor.data) % (vec * bytes) == 0 &&
         (shape.rows == 1 || tensor.strides.row % vec == 0) &&
         (dense ? shape.cols : shape.run) % vec == 0 && (dense || tensor.strides.run % vec == 0);
}

// Whether its rows lie one after another without gaps.
inline bool is_flat(const Operand& tensor, const Shape& shape) {
  return has_dense_rows(shape, tensor.strides) &&
         (shape.rows == 1 || tensor.strides.row == shape.cols);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Args>
Plan plan_of(const Args& args, Types types, int max_cluster) {
  const Kernels<Args>& kernels = kernels_of(args, types);
  bool vector = true, flat = true;
  for (int i = 0; i < Args::kOperands; ++i) {
    const Operand& tensor = args.operands[i];
    const bool is_state = i > Args::kFirstInput && i < Args::kResults;
    if (is_state && tensor.data == nullptr) continue;  // which the rule lacks
    vector = vector && allows_vectors(tensor, bytes_of<Args>(types, i), kernels.vec, args.shape);
    flat = flat && is_flat(tensor, args.shape);
  }
  const int64_t all_rows = args.shape.rows, cols = args.shape.cols;
  const int index = kernels.tier_of(all_rows, cols, vector, flat, max_cluster);
  const Tier& tier = kernels.tiers[index];
  const int64_t teams = tier.threads() / tier.team;
  int64_t rows = teams * tier.team_rows, chunk_cols = cols, chunks = 1;
  if (tier.access == Access::kFlat) {
    // As many as shared memory holds, or fewer, so that there is a block for every multiprocessor.
    const int64_t fit = (types == kF64 ? kTile<double> : kTile<float>) / cols;
    rows = std::min(fit, std::max(teams, ceil_div(all_rows, kMultiprocessors)));
  } else if (tier.form == Form::kCluster) {
    for (chunks = 2; chunks * tier.max_cols(1) < cols;) chunks *= 2;
    chunk_cols = ceil_div(cols, chunks * kernels.vec) * kernels.vec;
  } else if (tier.form == Form::kSplit) {
    const int64_t tile = tier.team * tier.elements, tiles = ceil_div(cols, tile);
    chunk_cols = tile * ceil_div(tiles, ceil_div(kMaxChunks, all_rows));
    chunks = ceil_div(cols, chunk_cols);
  }
  return {tier,
          index,
          tier.access == Access::kScalar ? 1 : kernels.vec,
          static_cast<int32_t>(rows),
          kernels.resident / tier.threads(),
          static_cast<int32_t>(chunks),
          chunk_cols,
          ceil_div(all_rows, rows) * chunks,
          /*weight=*/0};
}

constexpr int64_t kMaxBlocks = INT32_MAX;  // of a grid: CUDA's limit

// The launches of a call. Empty weights are left out.
template <class Args>
class Launches {
 public:
  Launches(const Work<Args>* work, int64_t count, int max_cluster) : work_(work) {
    plans_.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      const Shape& shape = work[i].args->shape;
      if (shape.rows == 0 || shape.cols == 0) continue;
      plans_.push_back(plan_of(*work[i].args, work[i].types, max_cluster));
      plans_.back().weight = i;
    }
  }

  // The memory that split rows need between their launches: moments. They take turns with it.
  int64_t workspace_bytes() const {
    int64_t bytes = 0;
    for (const Plan& plan : plans_) {
      if (plan.tier.form == Form::kSplit)
        bytes = std::max(bytes, plan.blocks * kernels(plan).moments_bytes);
    }
    return bytes;
  }

  // Weights with the same kernel share launches, those with the most work a block first: blocks start
  // in order, and a long one that starts last keeps the others waiting. parameter_bytes: kSmallBytes
  // or kLargeBytes, whichever launches allow; a step takes kLargeBytes.
  template <class Launch>
  void start(int parameter_bytes, void* workspace, Launch launch) {
    std::stable_sort(plans_.begin(), plans_.end(), [&](const Plan& a, const Plan& b) {
      const auto first = kernel_of(a), second = kernel_of(b);
      return first != second ? first < second : a.rows * a.chunk_cols > b.rows * b.chunk_cols;
    });
    for (size_t i = 0; i < plans_.size();) {
      const Plan& plan = plans_[i];
      const Kernels<Args>& kernels = this->kernels(plan);
      const int threads = plan.tier.threads();
      if (plan.tier.form != Form::kRows) {
        Split<Args> split{args(plan), workspace, plan.chunk_cols, plan.chunks, types(plan)};
        const bool scalar = plan.tier.access == Access::kScalar;
        if (plan.tier.form == Form::kCluster) {
          launch(kernels.cluster, plan.blocks, threads, split, plan.chunks);
        } else {
          for (auto* kernel : kernels.split[scalar]) {
            if (kernel != nullptr) launch(kernel, plan.blocks, threads, split, 1);
          }
        }
        ++i;
        continue;
      }
      size_t end = i + 1;
      while (end < plans_.size() && kernel_of(plans_[end]) == kernel_of(plan)) ++end;
      constexpr size_t kFew = Batch<Args, kSmallBytes>::kCapacity;
      if (threads == 512) {
        i = launch_batch<kSmallBytes>(kernels.block_of_512, i, end, launch);
      } else if (threads == 256) {
        i = launch_batch<kSmallBytes>(kernels.block_of_256, i, end, launch);
      } else if (kernels.block_of_128 != nullptr &&
                 (end - i <= kFew || parameter_bytes < kLargeBytes)) {
        i = launch_batch<kSmallBytes>(kernels.block_of_128, i, end, launch);
      } else {
        i = launch_batch<kLargeBytes>(kernels.many_blocks_of_128, i, end, launch);
      }
    }
  }

 private:
  const Args& args(const Plan& plan) const { return *work_[plan.weight].args; }
  Types types(const Plan& plan) const { return work_[plan.weight].types; }
  const Kernels<Args>& kernels(const Plan& plan) const {
    return kernels_of(args(plan), types(plan));
  }
  // What a launch has one of.
  std::tuple<const Kernels<Args>*, Form, int> kernel_of(const Plan& plan) const {
    return {&kernels(plan), plan.tier.form, plan.tier.threads()};
  }

  // One launch of plans_[i], ... as far as they fit, before `end`; returns where it ended.
  template <int kBytes, class Kernel, class Launch>
  size_t launch_batch(Kernel kernel, size_t i, size_t end, Launch& launch) const {
    const int threads = plans_[i].tier.threads();
    int64_t blocks = 0;
    Batch<Args, kBytes> batch;
    static_assert(sizeof(batch) <= kBytes);
    batch.count = 0;
    for (; i < end && batch.count < batch.kCapacity; ++i) {
      const Plan& plan = plans_[i];
      if (batch.count > 0 && blocks + plan.blocks > kMaxBlocks) break;
      batch.entries[batch.count] = {args(plan), static_cast<int16_t>(plan.index),
                                    static_cast<int16_t>(types(plan)), plan.rows};
      batch.first_block[batch.count++] = static_cast<uint32_t>(blocks);
      blocks += plan.blocks;
    }
    launch(kernel, blocks, threads, batch, 1);
    return i;
  }

  const Work<Args>* work_;
  std::vector<Plan> plans_;
};

}  // namespace ws
