// Runs CUDA kernels on the CPU, for tests: stands in for what the CUDA compiler builds in.
//
// Blocks run one after another, a block's threads as fibers that take turns: each runs until it has
// to wait for others, in a barrier or a shuffle. Once none can run on, whoever waits together goes
// on together. Where threads wait for one that will never come, the launch ends with a message about
// it, and so it does on an access that is not aligned. The blocks of a cluster take turns likewise,
// each in a thread of the system's: shared memory, thread_local here, is each block's own (cluster.h).
//
// What it does not show: races (a fiber is never interrupted), the memory model, and time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cluster.h"

#undef __shared__
#define __shared__ static thread_local  // every instance of a template has its own
#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)

inline thread_local uint3 threadIdx, blockIdx;

namespace stand_in {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 160 << 10;  // a kernel's parameter may take 32 KB of them

enum class State { kRunning, kAtBarrier, kAtClusterBarrier, kAtShuffle, kLeft };

struct Fiber {
  ucontext_t context;  // where it starts
  jmp_buf place;       // where it goes on: unlike a change of context, without a system call
  bool started;
  State state;
  unsigned mask;   // of a shuffle
  int distance;    // of a shuffle
  uint64_t value;  // put into a shuffle, then taken out of it
};

// Accesses that say that they read memory once, and the bytes that they read.
struct Loads {
  int64_t count;
  int64_t bytes;
};

class Launch {
 public:
  Loads loads{};

  // Runs the kernel; returns what went wrong, or nothing.
  std::string run(unsigned blocks, unsigned threads, unsigned cluster,
                  std::function<void()> kernel) {
    kernel_ = std::move(kernel);
    for (unsigned block = 0; block < blocks && error_.empty(); block += cluster) {
      if (cluster == 1) {
        run_block(block, threads);
      } else {
        run_cluster(block, threads, cluster);
      }
    }
    return error_;
  }

  static Launch& current() { return *current_; }

  Cluster* cluster() { return cluster_; }
  unsigned rank() const { return rank_; }

  void wait(State state) {
    Fiber& fiber = fibers_[threadIdx.x];
    fiber.state = state;
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler_, 1);
  }

  uint64_t shuffle(unsigned mask, int distance, uint64_t value) {
    Fiber& fiber = fibers_[threadIdx.x];
    fiber.mask = mask;
    fiber.distance = distance;
    fiber.value = value;
    const unsigned lane = threadIdx.x % kWarp;
    if (~mask >> lane & 1 || ~mask >> (lane ^ distance) & 1) {
      fail(name(threadIdx.x) + " shuffles with a lane that its mask leaves out, or is left out");
    }
    wait(State::kAtShuffle);
    return fiber.value;
  }

  void fail(const std::string& what) {
    if (error_.empty()) {
      error_ = "block " + std::to_string(blockIdx.x) + ": " + what;
    }
  }

 private:
  void run_block(unsigned block, unsigned threads) {
    if (fibers_.size() != threads) {
      fibers_ = std::vector<Fiber>(threads);
      stacks_.reset(new char[threads * kStackBytes]);  // only what is used becomes memory
      make_fibers();
    }
    current_ = this;
    blockIdx.x = block;
    for (Fiber& fiber : fibers_) fiber.state = State::kRunning;
    while (error_.empty() && run_until_all_wait()) release();
  }

  void run_cluster(unsigned first, unsigned threads, unsigned size) {
    Cluster cluster(size);
    std::vector<Launch> launches(size);
    std::vector<std::thread> running;
    for (unsigned rank = 0; rank < size; ++rank) {
      running.emplace_back([&, rank] {
        Launch& launch = launches[rank];
        launch.cluster_ = &cluster;
        launch.rank_ = rank;
        launch.kernel_ = kernel_;
        cluster.start(rank, reinterpret_cast<char*>(&threadIdx));
        launch.run_block(first + rank, threads);
        cluster.leave(rank);
      });
    }
    for (std::thread& thread : running) thread.join();
    for (const Launch& launch : launches) {
      loads.count += launch.loads.count;
      loads.bytes += launch.loads.bytes;
      if (error_.empty()) error_ = launch.error_;
    }
  }

  static void enter() {
    for (;;) {  // a turn is a block
      current_->kernel_();
      current_->wait(State::kLeft);
    }
  }

  static std::string name(unsigned thread) { return "thread " + std::to_string(thread); }

  void make_fibers() {
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.started = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_.get() + i * kStackBytes;
      fiber.context.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber.context, enter, 0);
    }
  }

  void go_on(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  // False once all threads have left.
  bool run_until_all_wait() {
    bool any_waits = false;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      if (fibers_[i].state == State::kRunning) {
        threadIdx.x = static_cast<unsigned>(i);
        go_on(fibers_[i]);
      }
      any_waits |= fibers_[i].state != State::kLeft;
    }
    return any_waits;
  }

  void release() {
    bool released = false;
    for (size_t warp = 0; warp < fibers_.size(); warp += kWarp) {
      for (unsigned lane = 0; lane < kWarp && warp + lane < fibers_.size(); ++lane) {
        released |= release_shuffle(warp, lane);
      }
    }
    if (released) return;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      if (fibers_[i].state == State::kAtShuffle) return fail_shuffle(i);
    }
    for (size_t i = 0; i < fibers_.size(); ++i) {
      if (fibers_[i].state == State::kLeft) {
        return fail(name(i) + " has left the kernel while others wait in a barrier");
      }
      if (fibers_[i].state != fibers_[0].state) {
        return fail(name(i) + " waits in another barrier than thread 0");
      }
    }
    if (fibers_[0].state == State::kAtClusterBarrier) {
      const std::string error = cluster_->wait(rank_);
      if (!error.empty()) return fail(error);
    }
    for (Fiber& fiber : fibers_) fiber.state = State::kRunning;
  }

  bool shuffles_with(const Fiber& fiber, size_t other) const {
    return other < fibers_.size() && fibers_[other].state == State::kAtShuffle &&
           fibers_[other].mask == fiber.mask && fibers_[other].distance == fiber.distance;
  }

  // Lets the lanes of a shuffle go on if all of them have come, `lane` being one of them.
  bool release_shuffle(size_t warp, unsigned lane) {
    if (fibers_[warp + lane].state != State::kAtShuffle) return false;
    const unsigned mask = fibers_[warp + lane].mask;
    const int distance = fibers_[warp + lane].distance;
    uint64_t values[kWarp];
    for (unsigned other = 0; other < kWarp; ++other) {
      if (~mask >> other & 1) continue;
      if (!shuffles_with(fibers_[warp + lane], warp + other)) return false;
      values[other] = fibers_[warp + other].value;
    }
    for (unsigned other = 0; other < kWarp; ++other) {
      if (~mask >> other & 1) continue;
      fibers_[warp + other].value = values[other ^ distance];
      fibers_[warp + other].state = State::kRunning;
    }
    return true;
  }

  void fail_shuffle(size_t thread) {
    const Fiber& fiber = fibers_[thread];
    for (unsigned other = 0; other < kWarp; ++other) {
      const size_t missing = thread - thread % kWarp + other;
      if (~fiber.mask >> other & 1 || shuffles_with(fiber, missing)) continue;
      const bool left = missing >= fibers_.size() || fibers_[missing].state == State::kLeft;
      const bool barrier = !left && fibers_[missing].state != State::kAtShuffle;
      return fail(name(missing) +
                  (left      ? " has left the kernel"
                   : barrier ? " waits in a barrier"
                             : " is in another shuffle") +
                  " while " + name(thread) + " waits for it in a shuffle");
    }
  }

  inline static thread_local Launch* current_;
  std::function<void()> kernel_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<char[]> stacks_;
  Cluster* cluster_ = nullptr;  // and the block's place in it
  unsigned rank_ = 0;
  jmp_buf scheduler_;
  std::string error_;
};

}  // namespace stand_in

inline void __syncthreads() { stand_in::Launch::current().wait(stand_in::State::kAtBarrier); }

inline void __syncwarp(unsigned mask) { stand_in::Launch::current().shuffle(mask, 0, 0); }

inline void __cluster_barrier_arrive() {}

inline void __cluster_barrier_wait() {
  stand_in::Launch::current().wait(stand_in::State::kAtClusterBarrier);
}

inline unsigned __clusterSizeInBlocks() { return stand_in::Launch::current().cluster()->size(); }

inline void* __cluster_map_shared_rank(const void* address, unsigned rank) {
  stand_in::Launch& launch = stand_in::Launch::current();
  void* const mapped = launch.cluster()->map(address, launch.rank(), rank);
  if (mapped == nullptr) {
    launch.fail("reads the shared memory of block " + std::to_string(rank) +
                " of its cluster, which has left");
  }
  return mapped != nullptr ? mapped : const_cast<void*>(address);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = stand_in::Launch::current().shuffle(mask, distance, bits);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __ldcs(const T* address) {
  stand_in::Loads& loads = stand_in::Launch::current().loads;
  ++loads.count;
  loads.bytes += sizeof(T);
  return *address;
}

template <class T>
void __stwb(T* address, T value) {
  *address = value;
}

// Called by what -fsanitize=alignment puts before every access.
extern "C" __attribute__((used)) inline void __ubsan_handle_type_mismatch_v1(void*, void* address) {
  stand_in::Launch::current().fail("an access to " +
                                   std::to_string(reinterpret_cast<uintptr_t>(address)) +
                                   " is not aligned to its size");
}
