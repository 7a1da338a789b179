#include "parallel/stage_edge.h"

#include "base/error.h"

namespace trireme {
namespace {

constexpr int kActivationTag = 1;

std::span<std::byte> bytes_of(const MatrixView& x) {
  if (x.stride != x.cols && x.rows > 1) {
    fail(ErrorCode::kInternal, "stage edge: rows of {} at stride {} are not contiguous", x.cols,
         x.stride);
  }
  const auto count = static_cast<size_t>(x.rows * x.cols);
  return {static_cast<std::byte*>(x.data), count * size_of(x.dtype)};
}

}  // namespace

StageEdge::StageEdge(Communicator& world, const ParallelLayout& layout) : world_(&world) {
  const int index = layout.stage_of(world.rank());
  const int mine = layout.tensor_rank_of(world.rank());
  if (index > 0) {
    const Stage& previous = layout.stages[static_cast<size_t>(index - 1)];
    from_ = previous.first_rank + mine % previous.tensor;
  }
  next_stage_ = index + 1 < layout.pipeline();
  if (!next_stage_) return;
  const Stage& next = layout.stages[static_cast<size_t>(index + 1)];
  for (int receiver = mine; receiver < next.tensor; receiver += layout.stage(world.rank()).tensor) {
    to_.push_back(next.first_rank + receiver);
  }
}

void StageEdge::recv(MatrixView x, StreamHandle stream) {
  if (!has_previous())
    fail(ErrorCode::kInternal, "stage edge: the first stage has no previous one");
  world_->recv(bytes_of(x), from_, kActivationTag, stream);
}

void StageEdge::send(MatrixView x, StreamHandle stream) {
  if (!has_next()) fail(ErrorCode::kInternal, "stage edge: the last stage has no next one");
  for (const int receiver : to_) world_->send(bytes_of(x), receiver, kActivationTag, stream);
}

}  // namespace trireme
