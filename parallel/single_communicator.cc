// A world of one: collectives are copies, messages to oneself wait in a queue.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>

#include "base/error.h"
#include "parallel/communicator.h"

namespace trireme {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  explicit SingleCommunicator(std::string name) : name_(std::move(name)) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }

  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle) override {
    check("all_reduce_sum", 0);
    host_floats(data, count, dtype, name_);
  }

  void all_gather(std::span<const std::byte> in, std::span<std::byte> out, StreamHandle) override {
    check("all_gather", 0);
    if (out.size() != in.size()) {
      fail(ErrorCode::kInvalidArgument, "{}: all_gather: out has {} bytes, in {}", name_,
           out.size(), in.size());
    }
    if (!in.empty()) std::memmove(out.data(), in.data(), in.size());
  }

  void broadcast(std::span<std::byte>, int root, StreamHandle) override {
    check("broadcast", root);
  }
  void barrier() override { check("barrier", 0); }

  void send(std::span<const std::byte> data, int to, int tag, StreamHandle) override {
    check("send", to);
    queues_[tag].emplace_back(data.begin(), data.end());
  }

  void recv(std::span<std::byte> data, int from, int tag, StreamHandle) override {
    check("recv", from);
    auto& message = front("recv", tag);
    if (message.size() != data.size()) {
      fail(ErrorCode::kInternal, "{}: recv of {} bytes with tag {}: the message has {}", name_,
           data.size(), tag, message.size());
    }
    if (!data.empty()) std::memcpy(data.data(), message.data(), data.size());
    queues_[tag].pop_front();
  }

  int64_t probe(int from, int tag, Wait wait) override {
    check("probe", from);
    if (wait == Wait::kNever && queues_[tag].empty()) return -1;
    return static_cast<int64_t>(front("probe", tag).size());
  }

  std::unique_ptr<Communicator> split(int, const std::string& name) override {
    check("split", 0);
    return std::make_unique<SingleCommunicator>(name);
  }

  void set_agreement(uint64_t) override {}
  void set_deadline(std::chrono::milliseconds) override {}
  void abort(const std::string& reason) override {
    if (aborted_) return;
    aborted_ = true;
    reason_ = reason;
  }
  void check() override { check("check", 0); }

 private:
  void check(const char* operation, int peer) const {
    if (aborted_) fail(ErrorCode::kAborted, "{}: {}: aborted: {}", name_, operation, reason_);
    if (peer != 0) {
      fail(ErrorCode::kInvalidArgument, "{}: {}: no rank {} in a world of 1", name_, operation,
           peer);
    }
  }

  // Nobody else can send, so an empty queue will stay empty: waiting would never end.
  std::vector<std::byte>& front(const char* operation, int tag) {
    auto& queue = queues_[tag];
    if (queue.empty()) {
      fail(ErrorCode::kDeadlineExceeded,
           "{}: {} with tag {} from rank 0: nothing was sent and nobody else can send", name_,
           operation, tag);
    }
    return queue.front();
  }

  std::string name_;
  std::map<int, std::deque<std::vector<std::byte>>> queues_;
  bool aborted_ = false;
  std::string reason_;
};

}  // namespace

double largest_of_ranks(Communicator& host, double mine) {
  std::vector<double> all(static_cast<size_t>(host.size()));
  host.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return *std::max_element(all.begin(), all.end());
}

std::span<float> host_floats(void* data, int64_t count, DType dtype, const std::string& name) {
  if (dtype != DType::kF32) {
    fail(ErrorCode::kUnimplemented, "{}: all_reduce_sum of {}: host memory is summed as f32 alone",
         name, to_string(dtype));
  }
  if (count < 0)
    fail(ErrorCode::kInvalidArgument, "{}: all_reduce_sum of {} elements", name, count);
  return {static_cast<float*>(data), static_cast<size_t>(count)};
}

std::unique_ptr<Communicator> make_single_communicator(const std::string& name) {
  return std::make_unique<SingleCommunicator>(name);
}

}  // namespace trireme
