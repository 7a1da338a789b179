#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "parallel/host_id.h"
#include "parallel/mpi_exchange.h"
#include "parallel/shared_group.h"

namespace trireme {
namespace {

constexpr int kMaxTag = 32767;        // what every MPI has
constexpr size_t kEagerBytes = 4000;  // Open MPI sends these at once, ready receiver or not

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, const std::string& name, std::shared_ptr<MpiProcess> process,
                  bool shared_memory)
      : process_(process),
        messages_(comm, name, process),
        exchange_(std::make_unique<MpiLink>(comm, name, process)),
        shared_memory_(shared_memory) {}

  // Collective; apart from the constructor, since it uses this communicator's own collectives.
  void share_memory();

  int rank() const override { return messages_.rank(); }
  int size() const override { return messages_.size(); }
  const std::string& name() const override { return messages_.name(); }

  void all_reduce_sum(void* memory, int64_t count, DType dtype, StreamHandle) override {
    const std::span<float> data = host_floats(memory, count, dtype, name());
    if (SharedGroup* group = enter("all_reduce_sum")) return group->all_reduce_sum(data);
    exchange_.all_reduce_sum(data);
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out, StreamHandle) override;
  void broadcast(std::span<std::byte> data, int root, StreamHandle) override {
    check_peer("broadcast", root, 0);
    if (SharedGroup* group = enter("broadcast")) return group->broadcast(data, root);
    exchange_.broadcast(data, root);
  }
  void barrier() override {
    if (SharedGroup* group = enter("barrier")) return group->barrier();
    exchange_.barrier();
  }

  void send(std::span<const std::byte> data, int to, int tag, StreamHandle) override;
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle) override;
  int64_t probe(int from, int tag, Wait wait) override;

  std::unique_ptr<Communicator> split(int color, const std::string& name) override;
  void set_agreement(uint64_t value) override {
    if (group_) group_->set_agreement(value);
    exchange_.set_agreement(value);
  }
  void set_deadline(std::chrono::milliseconds limit) override;
  void abort(const std::string& reason) override { process_->abort(reason); }
  void check() override {
    if (!process_->idle()) process_->progress();
    process_->look_for_abort();
    messages_.check_open("check");
  }

 private:
  // The shared-memory group, if there is one.
  SharedGroup* enter(const char* operation) {
    messages_.check_open(operation);
    if (!process_->idle()) process_->progress();
    return group_.get();
  }
  void linger(size_t bytes);
  void check_peer(const char* operation, int peer, int tag) const;
  void check_bytes(const char* operation, size_t bytes) const;

  std::shared_ptr<MpiProcess> process_;
  MpiLink messages_;      // what users send
  MpiExchange exchange_;  // collectives: a communicator of their own, so that tags never meet
  bool shared_memory_;
  SharedMemory memory_;
  std::shared_ptr<SharedGroup> group_;
};

void MpiCommunicator::share_memory() {
  if (size() == 1 || !shared_memory_) return;
  const auto hosts = gather_host_ids(*this);
  const bool one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const HostId& id) { return id == hosts[0]; });
  if (!one_host) return;
  const size_t bytes = SharedGroup::bytes(size());
  std::array<char, 64> place{};
  if (rank() == 0) {
    std::string name;
    memory_ = SharedMemory::create(bytes, name);
    if (memory_.data() != nullptr) std::copy_n(name.data(), name.size(), place.data());
  }
  broadcast(std::as_writable_bytes(std::span(place)), 0, {});
  if (rank() != 0 && place[0] != 0) memory_ = SharedMemory::open(place.data(), bytes);
  std::vector<char> mapped(static_cast<size_t>(size()));
  const char mine = memory_.data() != nullptr;
  all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(mapped)), {});
  if (rank() == 0 && place[0] != 0) SharedMemory::unlink(place.data());
  if (std::count(mapped.begin(), mapped.end(), 0) > 0) {
    memory_ = SharedMemory();
    return;
  }
  SharedGroup::Options options{name(), messages_.limit(), process_->crowded(),
                               [process = process_.get()] { process->progress(); }};
  group_ = std::make_shared<SharedGroup>(memory_.data(), rank(), size(), std::move(options));
  process_->add_group(group_);
}

void MpiCommunicator::check_peer(const char* operation, int peer, int tag) const {
  if (peer < 0 || peer >= size()) {
    fail(ErrorCode::kInvalidArgument, "{}: {}: no rank {} in a world of {}", name(), operation,
         peer, size());
  }
  if (tag < 0 || tag > kMaxTag) {
    fail(ErrorCode::kInvalidArgument, "{}: {}: tag {} is not in 0..{}", name(), operation, tag,
         kMaxTag);
  }
}

void MpiCommunicator::check_bytes(const char* operation, size_t bytes) const {
  if (bytes <= size_t{INT32_MAX}) return;
  fail(ErrorCode::kInvalidArgument, "{}: {} of {} bytes: one message has at most 2 GiB", name(),
       operation, bytes);
}

void MpiCommunicator::all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                                 StreamHandle) {
  if (out.size() != in.size() * static_cast<size_t>(size())) {
    fail(ErrorCode::kInvalidArgument, "{}: all_gather: out has {} bytes, in {} on each of {} ranks",
         name(), out.size(), in.size(), size());
  }
  if (SharedGroup* group = enter("all_gather")) return group->all_gather(in, out);
  exchange_.all_gather(in, out);
}

void MpiCommunicator::send(std::span<const std::byte> data, int to, int tag, StreamHandle) {
  messages_.check_open("send");
  check_peer("send", to, tag);
  check_bytes("send", data.size());
  if (process_->full()) {
    messages_.wait("send", to, data.size(), [&] { return !process_->full(); });
  }
  process_->send(messages_.comm(), data, to, tag, name());
  if (data.size() > kEagerBytes) linger(data.size());
}

// A large message leaves only while its sender is inside MPI (unless receivers can fetch it): stay
// for as long as the copy takes if the receiver is waiting already, and a little longer. If it is
// not, later calls move the message along.
void MpiCommunicator::linger(size_t bytes) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::nanoseconds(50'000 + bytes / 2);
  while (!process_->idle() && Clock::now() < until) {
    process_->progress();
    if (process_->crowded()) sched_yield();
  }
}

// Matches before it receives: the size is known to be right, and no deadline can pass while MPI
// holds the caller's memory unless the peer dies in the middle of the message.
void MpiCommunicator::recv(std::span<std::byte> data, int from, int tag, StreamHandle) {
  messages_.check_open("recv");
  check_peer("recv", from, tag);
  check_bytes("recv", data.size());
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  messages_.wait("recv", from, data.size(), [&] {
    int found = 0;
    messages_.check(MPI_Improbe(from, tag, messages_.comm(), &found, &message, &status), "recv",
                    from, data.size());
    return found != 0;
  });
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  std::vector<std::byte> wrong;
  const bool fits = static_cast<size_t>(bytes) == data.size();
  if (!fits) wrong.resize(static_cast<size_t>(bytes));
  MPI_Request request = MPI_REQUEST_NULL;
  messages_.check(
      MPI_Imrecv(fits ? data.data() : wrong.data(), bytes, MPI_BYTE, &message, &request), "recv",
      from, data.size());
  messages_.wait("recv", from, data.size(), [&] {
    int done = 0;
    messages_.check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "recv", from, data.size());
    return done != 0;
  });
  if (fits) return;
  fail(ErrorCode::kInternal,
       "{}: rank {} of {}: recv of {} bytes from rank {} with tag {}: the message has {}", name(),
       rank(), size(), data.size(), from, tag, bytes);
}

int64_t MpiCommunicator::probe(int from, int tag, Wait wait) {
  messages_.check_open("probe");
  check_peer("probe", from, tag);
  int found = 0;
  MPI_Status status;
  const auto look = [&] {
    messages_.check(MPI_Iprobe(from, tag, messages_.comm(), &found, &status), "probe", from, 0);
    return found != 0;
  };
  if (wait == Wait::kDeadline) {
    messages_.wait("probe", from, 0, look);
  } else if (wait == Wait::kForever) {
    Waiter waiter(std::chrono::hours(24 * 365 * 10), process_->crowded());
    while (!look()) {
      if (waiter.slow()) process_->look_for_abort();
      messages_.check_open("probe");
      if (!process_->idle()) process_->progress();
      waiter.pause();
    }
  } else if (!look() && !look()) {  // the first look may only have fetched it
    return -1;
  }
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  return bytes;
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, const std::string& name) {
  if (color < 0) fail(ErrorCode::kInvalidArgument, "{}: split: color {}", this->name(), color);
  barrier();  // with a deadline, which MPI_Comm_split has not
  MPI_Comm part = MPI_COMM_NULL;
  messages_.check(MPI_Comm_split(messages_.comm(), color, rank(), &part), "split", -1, 0);
  MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
  auto child = make_mpi_communicator(part, name, process_, shared_memory_);
  child->set_deadline(messages_.limit());
  MPI_Comm_free(&part);
  return child;
}

void MpiCommunicator::set_deadline(std::chrono::milliseconds limit) {
  messages_.set_limit(limit);
  exchange_.link().set_limit(limit);
  if (group_) group_->set_limit(limit);
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, const std::string& name,
                                                    std::shared_ptr<MpiProcess> process,
                                                    bool shared_memory) {
  auto communicator =
      std::make_unique<MpiCommunicator>(comm, name, std::move(process), shared_memory);
  communicator->share_memory();
  return communicator;
}

}  // namespace trireme
