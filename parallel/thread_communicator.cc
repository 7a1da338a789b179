// N ranks as threads of one process. Collectives read and write the callers' memory directly.
#include <cstring>

#include "base/error.h"
#include "base/thread_pool.h"
#include "parallel/communicator.h"
#include "parallel/thread_group.h"

namespace trireme {
namespace {

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  const std::string& name() const override { return group_->name(); }

  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle) override;
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out, StreamHandle) override;
  void broadcast(std::span<std::byte> data, int root, StreamHandle) override;
  void barrier() override {
    group_->enter(rank_, "barrier", {}, nullptr, 0, agreement_, limit_);
    group_->leave(rank_);
  }

  void send(std::span<const std::byte> data, int to, int tag, StreamHandle) override {
    check_peer("send", to);
    group_->send(rank_, to, tag, data, limit_);
  }
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle) override {
    check_peer("recv", from);
    group_->recv(rank_, from, tag, data, limit_);
  }
  int64_t probe(int from, int tag, Wait wait) override {
    check_peer("probe", from);
    return group_->probe(rank_, from, tag, wait, limit_);
  }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override;
  void set_agreement(uint64_t value) override { agreement_ = value; }
  void set_deadline(std::chrono::milliseconds limit) override { limit_ = limit; }
  void abort(const std::string& reason) override;
  void check() override;

 private:
  void check_peer(const char* operation, int peer) const {
    if (peer >= 0 && peer < size()) return;
    fail(ErrorCode::kInvalidArgument, "{}: {}: no rank {} in a world of {}", name(), operation,
         peer, size());
  }

  std::shared_ptr<ThreadGroup> group_;
  int rank_;
  uint64_t agreement_ = 0;
  std::chrono::milliseconds limit_{300'000};
};

// Each rank sums one part of the vector and writes it to everybody: nobody else touches that part.
void ThreadCommunicator::all_reduce_sum(void* memory, int64_t elements, DType dtype, StreamHandle) {
  const std::span<float> data = host_floats(memory, elements, dtype, name());
  group_->enter(rank_, "all_reduce_sum", std::as_bytes(data),
                reinterpret_cast<std::byte*>(data.data()), 0, agreement_, limit_);
  const Range part = split_range(static_cast<int64_t>(data.size()), rank_, size(), 16);
  const size_t count = static_cast<size_t>(part.end - part.begin);
  if (count > 0) {
    const auto of = [&](int rank) {
      return reinterpret_cast<float*>(group_->call(rank).out) + part.begin;
    };
    float* sum = of(0);
    for (int rank = 1; rank < size(); ++rank) {
      const float* term = of(rank);
      for (size_t i = 0; i < count; ++i) sum[i] += term[i];
    }
    for (int rank = 1; rank < size(); ++rank) std::memcpy(of(rank), sum, count * sizeof(float));
  }
  group_->leave(rank_);
}

void ThreadCommunicator::all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                                    StreamHandle) {
  if (out.size() != in.size() * static_cast<size_t>(size())) {
    fail(ErrorCode::kInvalidArgument, "{}: all_gather: out has {} bytes, in {} on each of {} ranks",
         name(), out.size(), in.size(), size());
  }
  group_->enter(rank_, "all_gather", in, nullptr, 0, agreement_, limit_);
  for (int rank = 0; rank < size() && !in.empty(); ++rank) {
    std::byte* to = out.data() + static_cast<size_t>(rank) * in.size();
    const std::byte* from = group_->call(rank).in;
    if (to != from) std::memcpy(to, from, in.size());
  }
  group_->leave(rank_);
}

void ThreadCommunicator::broadcast(std::span<std::byte> data, int root, StreamHandle) {
  check_peer("broadcast", root);
  group_->enter(rank_, "broadcast", data, nullptr, root, agreement_, limit_);
  if (rank_ != root && !data.empty()) {
    std::memcpy(data.data(), group_->call(root).in, data.size());
  }
  group_->leave(rank_);
}

std::unique_ptr<Communicator> ThreadCommunicator::split(int color, const std::string& name) {
  std::vector<int> colors(static_cast<size_t>(size()));
  all_gather(std::as_bytes(std::span(&color, 1)), std::as_writable_bytes(std::span(colors)), {});
  int members = 0, new_rank = 0, first = -1;
  for (int rank = 0; rank < size(); ++rank) {
    if (colors[static_cast<size_t>(rank)] != color) continue;
    if (first < 0) first = rank;
    if (rank == rank_) new_rank = members;
    ++members;
  }
  auto& place = group_->children()[static_cast<size_t>(first)];
  if (rank_ == first) {
    place = std::make_shared<ThreadGroup>(members, name, group_->family());
    std::unique_lock lock(group_->family()->mutex);
    group_->family()->groups.push_back(place);
    const bool aborted = group_->family()->aborted;
    const std::string reason = group_->family()->reason;
    lock.unlock();
    if (aborted) place->abort(reason);
  }
  barrier();
  auto child = std::make_unique<ThreadCommunicator>(place, new_rank);
  child->set_deadline(limit_);
  barrier();
  if (rank_ == first) place.reset();
  return child;
}

void ThreadCommunicator::abort(const std::string& reason) {
  std::vector<std::shared_ptr<ThreadGroup>> groups;
  {
    ThreadFamily& family = *group_->family();
    std::lock_guard lock(family.mutex);
    if (!family.aborted) family.reason = reason;
    family.aborted = true;
    for (const auto& member : family.groups) {
      if (auto group = member.lock()) groups.push_back(std::move(group));
    }
  }
  for (const auto& group : groups) group->abort(reason);
}

void ThreadCommunicator::check() {
  ThreadFamily& family = *group_->family();
  std::lock_guard lock(family.mutex);
  if (family.aborted) fail(ErrorCode::kAborted, "{}: aborted: {}", name(), family.reason);
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size,
                                                                     const std::string& name) {
  if (size < 1) fail(ErrorCode::kInvalidArgument, "{}: a world of {} ranks", name, size);
  auto family = std::make_shared<ThreadFamily>();
  auto group = std::make_shared<ThreadGroup>(size, name, family);
  family->groups.push_back(group);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  }
  return ranks;
}

}  // namespace trireme
