#include "parallel/shared_group.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/thread_pool.h"
#include "parallel/wait.h"

namespace trireme {

namespace {

constexpr size_t kMostSlotBytes = 512 * 1024;
constexpr size_t kGroupBytes = 8 << 20;    // of all ranks' slots, once
constexpr size_t kWholeBytes = 16 * 1024;  // up to here every rank sums everything itself
constexpr size_t kSumBlock = 1024;         // floats; a running sum in the first-level cache
constexpr uint32_t kBarrier = 1, kAllReduce = 2, kAllGather = 3, kBroadcast = 4;
const char* const kOperations[] = {"nothing", "barrier", "all_reduce_sum", "all_gather",
                                   "broadcast"};

}  // namespace

struct alignas(64) SharedGroup::Header {
  std::atomic<uint32_t> closing;
  std::atomic<uint32_t> closed;
  std::atomic<uint32_t> aborted;  // closed because the world ends
  char reason[240];
};

struct alignas(64) SharedGroup::Seat {
  std::atomic<uint64_t> entered;
  char pad[56];
  std::atomic<uint64_t> summed;
};

struct alignas(64) SharedGroup::Slot {
  uint32_t kind;
  uint32_t root;
  uint64_t bytes;
  uint64_t agreement;
  char pad[40];
};

size_t SharedGroup::slot_bytes(int size) {
  return std::min(kMostSlotBytes, kGroupBytes / static_cast<size_t>(size) / 64 * 64);
}

size_t SharedGroup::bytes(int size) {
  return sizeof(Header) +
         static_cast<size_t>(size) * (sizeof(Seat) + 2 * (sizeof(Slot) + slot_bytes(size)));
}

SharedGroup::SharedGroup(std::byte* memory, int rank, int size, Options options)
    : memory_(memory),
      rank_(rank),
      size_(size),
      options_(std::move(options)),
      slot_bytes_(slot_bytes(size)) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
}

SharedGroup::Seat& SharedGroup::seat(int rank) const {
  return reinterpret_cast<Seat*>(memory_ + sizeof(Header))[rank];
}

SharedGroup::Slot& SharedGroup::slot(int rank) const {
  std::byte* slots = memory_ + sizeof(Header) + static_cast<size_t>(size_) * sizeof(Seat);
  const size_t index = static_cast<size_t>(rank) * 2 + (count_ & 1);
  return *reinterpret_cast<Slot*>(slots + index * (sizeof(Slot) + slot_bytes_));
}

std::byte* SharedGroup::slot_data(int rank) const {
  return reinterpret_cast<std::byte*>(&slot(rank)) + sizeof(Slot);
}

void SharedGroup::close(const std::string& reason) {
  auto& header = *reinterpret_cast<Header*>(memory_);
  if (header.closing.exchange(1) != 0) return;
  std::strncpy(header.reason, reason.c_str(), sizeof header.reason - 1);
  header.closed.store(1);
}

void SharedGroup::abort(const std::string& reason) {
  close(reason);
  reinterpret_cast<Header*>(memory_)->aborted.store(1);
}

bool SharedGroup::aborted(std::string& reason) const {
  const auto& header = *reinterpret_cast<const Header*>(memory_);
  if (!header.aborted.load() || !header.closed.load()) return false;
  reason = header.reason;
  return true;
}

void SharedGroup::fail_closed(const Call& call) const {
  const auto& header = *reinterpret_cast<const Header*>(memory_);
  fail(ErrorCode::kAborted, "{}: {}: aborted: {}", options_.name, call.operation, header.reason);
}

template <typename Ready>
void SharedGroup::wait(const Call& call, int rank, Ready ready) {
  const auto& header = *reinterpret_cast<const Header*>(memory_);
  Waiter waiter(options_.limit, options_.crowded);
  while (!ready()) {
    if (header.closed.load(std::memory_order_acquire)) fail_closed(call);
    if (waiter.slow() && options_.progress) options_.progress();
    if (waiter.pause()) continue;
    const std::string what =
        fmt::format("rank {} of {}: {} of {} bytes: waited {} ms for rank {}", rank_, size_,
                    call.operation, call.bytes, options_.limit.count(), rank);
    close(what);  // the group is out of step from here on
    throw Error(ErrorCode::kDeadlineExceeded, fmt::format("{}: {}", options_.name, what));
  }
}

void SharedGroup::wait_entered(const Call& call, int rank, uint64_t count) {
  const auto& entered = seat(rank).entered;
  wait(call, rank, [&] { return entered.load(std::memory_order_acquire) >= count; });
}

void SharedGroup::wait_summed(const Call& call, int rank) {
  const auto& summed = seat(rank).summed;
  wait(call, rank, [&] { return summed.load(std::memory_order_acquire) >= count_; });
}

void SharedGroup::begin(const Call& call) {
  const auto& header = *reinterpret_cast<const Header*>(memory_);
  if (header.closed.load(std::memory_order_acquire)) fail_closed(call);
  ++count_;
  for (int rank = 0; rank < size_; ++rank) wait_entered(call, rank, count_ - 1);
}

void SharedGroup::publish(const Call& call) {
  Slot& mine = slot(rank_);
  mine.kind = call.kind;
  mine.root = call.root;
  mine.bytes = call.bytes;
  mine.agreement = agreement_;
  seat(rank_).entered.store(count_, std::memory_order_release);
}

void SharedGroup::check_same(const Call& call, int rank) {
  const Slot& theirs = slot(rank);
  if (theirs.kind == call.kind && theirs.bytes == call.bytes && theirs.root == call.root &&
      theirs.agreement == agreement_) {
    return;
  }
  const std::string what = fmt::format(
      "mismatch: rank {} is in {} of {} bytes (root {}, plan {:016x}), rank {} in {} of "
      "{} (root {}, plan {:016x})",
      rank_, call.operation, call.bytes, call.root, agreement_, rank,
      kOperations[std::min<uint32_t>(theirs.kind, 4)], theirs.bytes, theirs.root, theirs.agreement);
  close(what);
  throw Error(ErrorCode::kInternal, fmt::format("{}: {}", options_.name, what));
}

// out[0, count) = the slots' elements from `begin` on, added in rank order.
void SharedGroup::sum(float* out, size_t begin, size_t count) const {
  float block[kSumBlock];
  const auto terms = [&](int rank) {
    return reinterpret_cast<const float*>(slot_data(rank)) + begin;
  };
  for (size_t at = 0; at < count; at += kSumBlock) {
    const size_t n = std::min(kSumBlock, count - at);
    std::memcpy(block, terms(0) + at, n * sizeof(float));
    for (int rank = 1; rank < size_; ++rank) {
      const float* term = terms(rank) + at;
      for (size_t i = 0; i < n; ++i) block[i] += term[i];
    }
    std::memcpy(out + at, block, n * sizeof(float));
  }
}

void SharedGroup::reduce_whole(const Call& call, std::span<float> data) {
  begin(call);
  if (!data.empty()) std::memcpy(slot_data(rank_), data.data(), data.size_bytes());
  publish(call);
  for (int rank = 0; rank < size_; ++rank) {
    wait_entered(call, rank, count_);
    check_same(call, rank);
  }
  sum(data.data(), 0, data.size());
}

// Each rank sums one part into its own slot, where nobody else reads that part, and then copies
// every part from the rank that summed it.
void SharedGroup::reduce_parts(const Call& call, std::span<float> data) {
  begin(call);
  std::memcpy(slot_data(rank_), data.data(), data.size_bytes());
  publish(call);
  for (int rank = 0; rank < size_; ++rank) {
    wait_entered(call, rank, count_);
    check_same(call, rank);
  }
  const auto part = [&](int rank) {
    return split_range(static_cast<int64_t>(data.size()), rank, size_, 16);
  };
  const auto count = [&](int rank) {
    return static_cast<size_t>(part(rank).end - part(rank).begin);
  };
  float* mine = reinterpret_cast<float*>(slot_data(rank_)) + part(rank_).begin;
  sum(mine, static_cast<size_t>(part(rank_).begin), count(rank_));
  seat(rank_).summed.store(count_, std::memory_order_release);
  for (int rank = 0; rank < size_; ++rank) {
    wait_summed(call, rank);
    if (count(rank) == 0) continue;
    const float* from = reinterpret_cast<const float*>(slot_data(rank)) + part(rank).begin;
    std::memcpy(data.data() + part(rank).begin, from, count(rank) * sizeof(float));
  }
}

void SharedGroup::all_reduce_sum(std::span<float> data) {
  const Call call{"all_reduce_sum", kAllReduce, 0, data.size_bytes()};
  if (data.size_bytes() <= std::min(kWholeBytes, slot_bytes_)) return reduce_whole(call, data);
  const size_t most = slot_bytes_ / sizeof(float);
  for (; !data.empty(); data = data.subspan(std::min(most, data.size()))) {
    reduce_parts(call, data.first(std::min(most, data.size())));
  }
}

void SharedGroup::all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  const Call call{"all_gather", kAllGather, 0, in.size()};
  size_t at = 0;
  do {
    const size_t n = std::min(slot_bytes_, in.size() - at);
    begin(call);
    if (n > 0) std::memcpy(slot_data(rank_), in.data() + at, n);
    publish(call);
    for (int rank = 0; rank < size_; ++rank) {
      wait_entered(call, rank, count_);
      check_same(call, rank);
      if (n == 0) continue;
      std::memcpy(out.data() + static_cast<size_t>(rank) * in.size() + at, slot_data(rank), n);
    }
    at += n;
  } while (at < in.size());
}

// The root does not wait for the others here; it will when it wants the slot again.
void SharedGroup::broadcast(std::span<std::byte> data, int root) {
  const Call call{"broadcast", kBroadcast, static_cast<uint32_t>(root), data.size()};
  size_t at = 0;
  do {
    const size_t n = std::min(slot_bytes_, data.size() - at);
    begin(call);
    if (rank_ == root && n > 0) std::memcpy(slot_data(rank_), data.data() + at, n);
    publish(call);
    if (rank_ != root) {
      wait_entered(call, root, count_);
      check_same(call, root);
      if (n > 0) std::memcpy(data.data() + at, slot_data(root), n);
    }
    at += n;
  } while (at < data.size());
}

void SharedGroup::barrier() {
  const Call call{"barrier", kBarrier, 0, 0};
  begin(call);
  publish(call);
  for (int rank = 0; rank < size_; ++rank) {
    wait_entered(call, rank, count_);
    check_same(call, rank);
  }
}

}  // namespace trireme
