#include "parallel/recording_communicator.h"

#include <utility>

namespace trireme {
namespace {

class RecordingCommunicator final : public Communicator {
 public:
  RecordingCommunicator(std::unique_ptr<Communicator> inner, SpanRecorder& spans, SpanLink link)
      : inner_(std::move(inner)), spans_(spans), link_(link) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }

  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) override {
    const SpanScope scope(&spans_, SpanKind::kAllReduce, link_, -1,
                          static_cast<size_t>(count) * size_of(dtype));
    inner_->all_reduce_sum(data, count, dtype, stream);
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                  StreamHandle stream) override {
    const SpanScope scope(&spans_, SpanKind::kAllGather, link_, -1, in.size());
    inner_->all_gather(in, out, stream);
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream) override {
    const SpanScope scope(&spans_, SpanKind::kBroadcast, link_, root, data.size());
    inner_->broadcast(data, root, stream);
  }
  void barrier() override {
    const SpanScope scope(&spans_, SpanKind::kBarrier, link_);
    inner_->barrier();
  }
  void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream) override {
    const SpanScope scope(&spans_, SpanKind::kSend, link_, to, data.size());
    inner_->send(data, to, tag, stream);
  }
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream) override {
    const SpanScope scope(&spans_, SpanKind::kReceive, link_, from, data.size());
    inner_->recv(data, from, tag, stream);
  }
  int64_t probe(int from, int tag, Wait wait) override {
    if (wait == Wait::kNever) return inner_->probe(from, tag, wait);
    const SpanScope scope(&spans_, SpanKind::kWait, link_, from);
    return inner_->probe(from, tag, wait);
  }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    return inner_->split(color, name);
  }
  void set_agreement(uint64_t value) override { inner_->set_agreement(value); }
  void set_deadline(std::chrono::milliseconds limit) override { inner_->set_deadline(limit); }
  void abort(const std::string& reason) override { inner_->abort(reason); }
  void check() override { inner_->check(); }

 private:
  std::unique_ptr<Communicator> inner_;
  SpanRecorder& spans_;
  SpanLink link_;
};

}  // namespace

std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          SpanRecorder& spans, SpanLink link) {
  return std::make_unique<RecordingCommunicator>(std::move(inner), spans, link);
}

}  // namespace trireme
