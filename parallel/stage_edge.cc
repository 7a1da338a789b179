#include "parallel/stage_edge.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int kActivationTag = 1;
// Thread blocks of a message between stages: it runs beside the layers, and waits there for its
// peer. Four move tens of GB/s over NVLink, far more than a stage's activations need.
constexpr int kEdgeBlocks = 4;

std::span<std::byte> bytes_of(const MatrixView& x) {
  if (x.stride != x.cols && x.rows > 1) {
    fail(ErrorCode::kInternal, "stage edge: rows of {} at stride {} are not contiguous", x.cols,
         x.stride);
  }
  const auto count = static_cast<size_t>(x.rows * x.cols);
  return {static_cast<std::byte*>(x.data), count * size_of(x.dtype)};
}

}  // namespace

StageEdge::StageEdge(Communicator& world, const ParallelLayout& layout)
    : StageEdge(&world, &world, layout, world.rank()) {
  incoming_first_ = outgoing_first_ = 0;
}

StageEdge::StageEdge(Communicator* incoming, Communicator* outgoing, const ParallelLayout& layout,
                     int rank)
    : incoming_(incoming), outgoing_(outgoing) {
  const int index = layout.stage_of(rank);
  const int mine = layout.tensor_rank_of(rank);
  outgoing_first_ = layout.stage(rank).first_rank;
  if (index > 0) {
    const Stage& previous = layout.stages[static_cast<size_t>(index - 1)];
    incoming_first_ = previous.first_rank;
    from_ = previous.first_rank + mine % previous.tensor;
  }
  next_stage_ = index + 1 < layout.pipeline();
  if (!next_stage_) return;
  const Stage& next = layout.stages[static_cast<size_t>(index + 1)];
  for (int receiver = mine; receiver < next.tensor; receiver += layout.stage(rank).tensor) {
    to_.push_back(next.first_rank + receiver);
  }
}

void StageEdge::recv(MatrixView x, StreamHandle stream) {
  if (!has_previous())
    fail(ErrorCode::kInternal, "stage edge: the first stage has no previous one");
  incoming_->recv(bytes_of(x), from_ - incoming_first_, kActivationTag, stream);
}

void StageEdge::send(MatrixView x, StreamHandle stream) {
  if (!has_next()) fail(ErrorCode::kInternal, "stage edge: the last stage has no next one");
  for (const int receiver : to_) {
    outgoing_->send(bytes_of(x), receiver - outgoing_first_, kActivationTag, stream);
  }
}

// A stage may be in two pairs, and enters one at a time: first those that an even stage begins.
StageGroups connect_stages(DeviceCommunicator& all, int stage, int pipeline) {
  StageGroups groups;
  for (int first = 0; first < std::min(2, pipeline - 1); ++first) {
    auto pair = all.split_device((stage + first) / 2, "device edge", kEdgeBlocks);
    if (stage % 2 == first) {
      if (stage + 1 < pipeline) groups.outgoing = std::move(pair);
    } else if (stage > 0) {
      groups.incoming = std::move(pair);
    }
  }
  return groups;
}

}  // namespace trireme
