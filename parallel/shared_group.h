// Collectives among ranks of one host through memory that all of them map. A decode step has two
// all-reduces of a few KB per layer: here one costs two cache misses per line, not two messages.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace trireme {

// POSIX shared memory, zeroed, mapped by several processes; unmapped by the destructor.
class SharedMemory {
 public:
  SharedMemory() = default;
  // Creates it under a fresh name. On failure (too small a /dev/shm, say) data() is null.
  static SharedMemory create(size_t bytes, std::string& name);
  static SharedMemory open(const std::string& name, size_t bytes);
  // The name is needed only until all have opened it; the memory lives on without.
  static void unlink(const std::string& name);

  std::byte* data() const { return data_.get(); }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* data) const;
  };
  SharedMemory(std::byte* data, size_t bytes) : data_(data, Unmap{bytes}) {}
  std::unique_ptr<std::byte, Unmap> data_{nullptr, Unmap{0}};
};

// One rank's view of the group. Ranks count their collectives; collective k uses slot k mod 2 of
// each rank. A rank writes its slot for k only once all have entered k - 1: then all have left
// k - 2, which used that slot before. So a small all-reduce has a single synchronization.
class SharedGroup {
 public:
  struct Options {
    std::string name;
    std::chrono::milliseconds limit{300'000};
    bool crowded = false;            // more ranks than cores: do not spin
    std::function<void()> progress;  // called now and then in long waits
  };

  static size_t bytes(int size);
  // `memory`: bytes(size) of it, zeroed before the first rank constructs; 64-byte aligned.
  SharedGroup(std::byte* memory, int rank, int size, Options options);

  void all_reduce_sum(std::span<float> data);
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  void broadcast(std::span<std::byte> data, int root);
  void barrier();

  void set_agreement(uint64_t value) { agreement_ = value; }
  void set_limit(std::chrono::milliseconds limit) { options_.limit = limit; }
  // From any thread: every pending and later call of any rank throws kAborted. aborted() tells the
  // other ranks, which may wait elsewhere, that it was not this group alone.
  void close(const std::string& reason);
  void abort(const std::string& reason);
  bool aborted(std::string& reason) const;

 private:
  struct Header;
  struct Seat;
  struct Slot;
  // The collective in hand, for messages and to find ranks that are in another one.
  struct Call {
    const char* operation;
    uint32_t kind;
    uint32_t root;
    uint64_t bytes;
  };

  static size_t slot_bytes(int size);
  Seat& seat(int rank) const;
  Slot& slot(int rank) const;  // of the collective in hand
  std::byte* slot_data(int rank) const;

  void begin(const Call& call);
  void publish(const Call& call);
  void wait_entered(const Call& call, int rank, uint64_t count);
  void wait_summed(const Call& call, int rank);
  void check_same(const Call& call, int rank);
  template <typename Ready>
  void wait(const Call& call, int rank, Ready ready);
  [[noreturn]] void fail_closed(const Call& call) const;
  void reduce_whole(const Call& call, std::span<float> data);
  void reduce_parts(const Call& call, std::span<float> data);
  void sum(float* out, size_t begin, size_t count) const;

  std::byte* memory_;
  int rank_;
  int size_;
  Options options_;
  size_t slot_bytes_;
  uint64_t count_ = 0;  // collectives entered
  uint64_t agreement_ = 0;
};

}  // namespace trireme
