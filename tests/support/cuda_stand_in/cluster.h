// The blocks of a cluster, each in a thread of the system's, of which one runs at a time: in the order of
// their ranks, each until it waits for the others or leaves.
//
// Shared memory is thread_local. All of a thread's is one piece of memory, laid out as any other
// thread's: an address in one block's is as far from a variable there as its counterpart from that
// variable in another block's.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

namespace stand_in {

class Cluster {
 public:
  explicit Cluster(unsigned size) : places_(size), size_(size) {}

  unsigned size() const { return size_; }

  // Waits for the block's first turn. `variable` is thread_local, and the same in every block.
  void start(unsigned rank, char* variable) {
    std::unique_lock<std::mutex> lock(mutex_);
    places_[rank].variable = variable;
    ++started_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return started_ == size_ && turn_ == rank; });
  }

  // Waits until all blocks do; returns what went wrong, or nothing.
  std::string wait(unsigned rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    places_[rank].waits = true;
    pass_on();
    changed_.wait(lock, [&] { return turn_ == rank; });
    return places_[rank].waits ? "a block of its cluster has left while it waits for all" : "";
  }

  void leave(unsigned rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    places_[rank].left = true;
    pass_on();
  }

  // nullptr if that block has left.
  void* map(const void* address, unsigned from, unsigned to) {
    if (places_[to].left) return nullptr;
    return places_[to].variable + (static_cast<const char*>(address) - places_[from].variable);
  }

 private:
  struct Place {
    char* variable;
    bool waits = false, left = false;
  };

  // The turn is that of the first block that can run. Where none can, all go on that wait; but if one
  // has left, the first of those goes on without having been released.
  void pass_on() {
    bool any_left = false;
    for (const Place& place : places_) any_left |= place.left;
    if (!any_can_run() && !any_left) {
      for (Place& place : places_) place.waits = false;
    }
    const bool stuck = !any_can_run();
    for (unsigned rank = 0; rank < size_; ++rank) {
      if (places_[rank].left || (places_[rank].waits && !stuck)) continue;
      turn_ = rank;
      break;
    }
    changed_.notify_all();
  }

  bool any_can_run() const {
    for (const Place& place : places_) {
      if (!place.waits && !place.left) return true;
    }
    return false;
  }

  std::vector<Place> places_;
  const unsigned size_;
  unsigned turn_ = 0, started_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace stand_in
