#include "parallel/ledger_communicator.h"

#include <type_traits>
#include <utility>

namespace trireme {
namespace {

template <typename Base>
class LedgerWriter : public Base {
 public:
  LedgerWriter(std::unique_ptr<Base> inner, Ledger& ledger, std::vector<int32_t> ranks)
      : inner_(std::move(inner)),
        ledger_(ledger),
        group_(ledger.add_group(inner_->name(), std::move(ranks))) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }

  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) override {
    begin(LedgerOp::kAllReduce, static_cast<size_t>(count) * size_of(dtype), -1, dtype);
    inner_->all_reduce_sum(data, count, dtype, stream);
    ledger_.end();
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                  StreamHandle stream) override {
    begin(LedgerOp::kAllGather, in.size());
    inner_->all_gather(in, out, stream);
    ledger_.end();
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream) override {
    begin(LedgerOp::kBroadcast, data.size(), root);
    inner_->broadcast(data, root, stream);
    ledger_.end();
  }
  void barrier() override {
    begin(LedgerOp::kBarrier, 0);
    inner_->barrier();
    ledger_.end();
  }
  void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream) override {
    begin(LedgerOp::kSend, data.size(), to);
    inner_->send(data, to, tag, stream);
    ledger_.end();
  }
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream) override {
    begin(LedgerOp::kReceive, data.size(), from);
    inner_->recv(data, from, tag, stream);
    ledger_.end();
  }
  int64_t probe(int from, int tag, Wait wait) override {
    if (wait == Wait::kNever) return inner_->probe(from, tag, wait);
    begin(wait == Wait::kForever ? LedgerOp::kIdle : LedgerOp::kProbe, 0, from);
    const int64_t bytes = inner_->probe(from, tag, wait);
    ledger_.end();
    return bytes;
  }

  void set_agreement(uint64_t value) override { inner_->set_agreement(value); }
  void set_deadline(std::chrono::milliseconds limit) override { inner_->set_deadline(limit); }
  void abort(const std::string& reason) override { inner_->abort(reason); }
  void check() override { inner_->check(); }

 protected:
  void begin(LedgerOp op, size_t bytes, int peer = -1, DType dtype = DType::kF32) {
    const bool collective = is_collective(op);
    ledger_.begin({op, dtype, group_, peer, bytes, collective ? ledger_.next_number(group_) : 0,
                   collective && std::is_same_v<Base, DeviceCommunicator>});
  }

  std::unique_ptr<Base> inner_;
  Ledger& ledger_;

 private:
  int16_t group_;
};

class HostWriter final : public LedgerWriter<Communicator> {
 public:
  using LedgerWriter::LedgerWriter;
  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    begin(LedgerOp::kSplit, 0);
    auto part = inner_->split(color, name);
    ledger_.end();
    return part;
  }
};

class DeviceWriter final : public LedgerWriter<DeviceCommunicator> {
 public:
  using LedgerWriter::LedgerWriter;
  Buffer allocate_symmetric(size_t bytes) override { return inner_->allocate_symmetric(bytes); }
  std::optional<PeerBuffers> map_peers(Communicator& host, size_t bytes,
                                       std::string& why) override {
    return inner_->map_peers(host, bytes, why);
  }
  std::string identity() const override { return inner_->identity(); }
  std::unique_ptr<DeviceCommunicator> split_device(int color, const std::string& name,
                                                   int blocks) override {
    begin(LedgerOp::kSplit, 0);
    auto part = inner_->split_device(color, name, blocks);
    ledger_.end();
    return part;
  }
  void wait(StreamHandle stream) override {
    begin(LedgerOp::kDevice, 0);
    inner_->wait(stream);
    ledger_.end();
  }
};

}  // namespace

std::unique_ptr<Communicator> make_ledger_communicator(std::unique_ptr<Communicator> inner,
                                                       Ledger& ledger, std::vector<int32_t> ranks) {
  return std::make_unique<HostWriter>(std::move(inner), ledger, std::move(ranks));
}

std::unique_ptr<DeviceCommunicator> make_ledger_communicator(
    std::unique_ptr<DeviceCommunicator> inner, Ledger& ledger, std::vector<int32_t> ranks) {
  return std::make_unique<DeviceWriter>(std::move(inner), ledger, std::move(ranks));
}

}  // namespace trireme
