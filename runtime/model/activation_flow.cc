#include "runtime/model/activation_flow.h"

#include <algorithm>

namespace trireme {
namespace {

// A slot is no larger: a step of more tokens computes for so long that its own memory can do.
constexpr int64_t kMostSlotBytes = int64_t{64} << 20;
// A receiver's kernel takes room on the GPU while it waits. What takes a few microseconds to arrive
// is therefore not waited for before the last step's layers are done; larger messages are.
constexpr size_t kSmallBytes = size_t{1} << 20;

size_t bytes_of(const MatrixView& x) {
  return static_cast<size_t>(x.rows * x.cols) * size_of(x.dtype);
}

int64_t slot_bytes(int64_t max_tokens, int64_t hidden) {
  return std::min(kMostSlotBytes, max_tokens * hidden * int64_t{sizeof(float)});
}

MatrixView in_memory(const Buffer& memory, const MatrixView& like) {
  return {memory.data(), like.dtype, like.rows, like.cols, like.cols};
}

}  // namespace

ActivationFlow::ActivationFlow(StageEdge& edge, Backend& backend, int64_t max_tokens,
                               int64_t hidden)
    : edge_(edge), backend_(backend), device_(backend.stream() != nullptr) {
  if (!device_) return;
  if (edge.has_previous()) open(in_, slot_bytes(max_tokens, hidden));
  if (edge.has_next()) open(out_, slot_bytes(max_tokens, hidden));
  computed_ = backend.make_mark();
}

int64_t ActivationFlow::bytes(const Backend& backend, bool has_previous, bool has_next,
                              int64_t max_tokens, int64_t hidden) {
  if (backend.stream() == nullptr) return 0;
  return 2 * (int64_t{has_previous} + int64_t{has_next}) * slot_bytes(max_tokens, hidden);
}

void ActivationFlow::open(Way& way, int64_t bytes) {
  way.stream = backend_.make_side_stream();
  for (Slot& slot : way.slots) {
    slot.memory = backend_.allocate(static_cast<size_t>(bytes));
    slot.filled = backend_.make_mark();
    slot.emptied = backend_.make_mark();
  }
  way.reached = backend_.make_mark();
  way.passed = backend_.make_mark();
}

void ActivationFlow::stamp(DevicePart part, const Way& way) {
  if (StepTimer* timer = backend_.step_timer()) timer->stamp(part, way.stream->native());
}

void ActivationFlow::receive(MatrixView x) {
  if (!edge_.has_previous()) return;
  if (!device_) return edge_.recv(x);
  if (bytes_of(x) > in_.slots[0].memory.size()) return receive_in_place(x);
  void* stream = in_.stream->native();
  Slot& slot = in_.slots[in_.turn++ % in_.slots.size()];
  const MatrixView arriving = in_memory(slot.memory, x);
  slot.emptied->await(stream);
  if (bytes_of(x) <= kSmallBytes) computed_->await(stream);
  stamp(DevicePart::kReceive, in_);
  edge_.recv(arriving, {stream});
  stamp(DevicePart::kNothing, in_);
  slot.filled->set(stream);
  slot.filled->await(backend_.stream());
  backend_.copy(arriving, x);
  slot.emptied->set(backend_.stream());
}

void ActivationFlow::receive_in_place(MatrixView x) {
  void* stream = in_.stream->native();
  in_.reached->set(backend_.stream());
  in_.reached->await(stream);
  stamp(DevicePart::kReceive, in_);
  edge_.recv(x, {stream});
  stamp(DevicePart::kNothing, in_);
  in_.passed->set(stream);
  in_.passed->await(backend_.stream());
}

void ActivationFlow::send(MatrixView x) {
  if (!device_) {
    if (edge_.has_next()) edge_.send(x);
    return;
  }
  computed_->set(backend_.stream());
  if (!edge_.has_next()) return;
  if (bytes_of(x) > out_.slots[0].memory.size()) return send_in_place(x);
  void* stream = out_.stream->native();
  Slot& slot = out_.slots[out_.turn++ % out_.slots.size()];
  const MatrixView leaving = in_memory(slot.memory, x);
  slot.emptied->await(backend_.stream());
  backend_.copy(x, leaving);
  slot.filled->set(backend_.stream());
  slot.filled->await(stream);
  stamp(DevicePart::kSend, out_);
  edge_.send(leaving, {stream});
  stamp(DevicePart::kNothing, out_);
  slot.emptied->set(stream);
}

void ActivationFlow::send_in_place(MatrixView x) {
  void* stream = out_.stream->native();
  out_.reached->set(backend_.stream());
  out_.reached->await(stream);
  stamp(DevicePart::kSend, out_);
  edge_.send(x, {stream});
  stamp(DevicePart::kNothing, out_);
  out_.passed->set(stream);
  out_.passed->await(backend_.stream());
}

}  // namespace trireme
