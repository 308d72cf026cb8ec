// The launches of a call, run one after another on the CPU, for ctypes.
#pragma once

#include "../../../csrc/cuda/launch/launch.h"
#include "stand_in.h"

namespace stand_in {

constexpr int kMaxRecorded = 64;

// What was launched: `kernels` are addresses, `blocks` and `clusters` the sizes of the grids and of
// their clusters, and `tiers` the launch table's entries in the order of their blocks, over all launches.
struct Record {
  Loads loads;
  int64_t launches;
  const void* kernels[kMaxRecorded];
  int64_t blocks[kMaxRecorded];
  int32_t clusters[kMaxRecorded];
  int64_t entries;
  int32_t tiers[kMaxRecorded];
};

template <class Args, int kBytes>
void note(const ws::Batch<Args, kBytes>& batch, Record* record) {
  for (int i = 0; i < batch.count && record->entries < kMaxRecorded; ++i) {
    record->tiers[record->entries++] = batch.entries[i].tier;
  }
}

template <class Args>
void note(const ws::Split<Args>&, Record*) {}

// Returns what went wrong, or "". The workspace starts as NaN.
template <class Args>
const char* run(const ws::Work<Args>* work, int64_t count, int max_cluster, int parameter_bytes,
                Record* record) {
  static std::string error;
  error.clear();
  ws::Launches<Args> launches(work, count, max_cluster);
  std::vector<uint64_t> workspace(launches.workspace_bytes() / sizeof(uint64_t) + 1, ~uint64_t{0});
  launches.start(
      parameter_bytes, workspace.data(),
      [&](auto* kernel, int64_t blocks, int threads, const auto& parameter, int cluster) {
        if (!error.empty()) return;
        Launch launch;
        launch.loads = record->loads;
        error = launch.run(blocks, threads, cluster, [&] { kernel(parameter); });
        record->loads = launch.loads;
        note(parameter, record);
        if (record->launches < kMaxRecorded) {
          record->kernels[record->launches] = reinterpret_cast<const void*>(kernel);
          record->blocks[record->launches] = blocks;
          record->clusters[record->launches] = cluster;
        }
        ++record->launches;
      });
  return error.c_str();
}

// A pass as the tests see it.
template <class Args>
struct Pass {
  int64_t bytes;        // of Args
  int64_t capacity[2];  // weights that share a launch, with the small and the large parameter
  ws::Plan (*plan)(const Args& args, ws::Types types, int max_cluster);
  const char* (*run)(const ws::Work<Args>* work, int64_t count, int max_cluster,
                     int parameter_bytes, Record* record);
};

template <class Args>
constexpr Pass<Args> pass() {
  return {
      sizeof(Args),
      {ws::Batch<Args, ws::kSmallBytes>::kCapacity, ws::Batch<Args, ws::kLargeBytes>::kCapacity},
      ws::plan_of<Args>,
      run<Args>};
}

}  // namespace stand_in
