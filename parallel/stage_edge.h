// The boundary between two pipeline stages: activations [tokens, hidden] pass from every tensor
// rank of one stage (each holds the whole, after its last all-reduce) to every tensor rank of the
// next. The two sides may have different tensor degrees: receiver j hears from sender j mod a, in
// whole rows, so that no second collective is needed.
#pragma once

#include <memory>
#include <vector>

#include "base/matrix_view.h"
#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/layout.h"

namespace trireme {

class StageEdge {
 public:
  // `world` spans all ranks of the layout and must outlive the edge: its memory is the
  // activations', host or device.
  StageEdge(Communicator& world, const ParallelLayout& layout);
  // Of `rank`, over groups of two neighbouring stages each: `incoming` of the previous stage and
  // this one, `outgoing` of this one and the next, with their ranks in order; null where there is
  // no such stage. So that the two ways are independent of each other.
  StageEdge(Communicator* incoming, Communicator* outgoing, const ParallelLayout& layout, int rank);

  bool has_previous() const { return from_ >= 0; }
  bool has_next() const { return next_stage_; }
  // In the world: of whom this rank receives (-1: nobody), to whom it sends.
  int previous() const { return from_; }
  const std::vector<int>& next() const { return to_; }

  // x is contiguous (stride == cols), of any dtype, the same on both sides. On host memory send()
  // returns once x may be overwritten; on a device x may be once `stream` has passed the send,
  // which waits there for the receivers: so it is best given a stream of its own.
  void recv(MatrixView x, StreamHandle stream = {});
  void send(MatrixView x, StreamHandle stream = {});

 private:
  Communicator* incoming_;
  Communicator* outgoing_;
  int incoming_first_ = 0;  // the world's rank that is rank 0 of the group
  int outgoing_first_ = 0;
  int from_ = -1;
  bool next_stage_ = false;
  std::vector<int> to_;
};

// The two groups that a stage is in; null where it has no neighbour.
struct StageGroups {
  std::unique_ptr<DeviceCommunicator> incoming, outgoing;
};
// Collective over `all` ranks of a layout, split into a communicator for each pair of neighbouring
// stages. Its operations share the device with the layers, so they get few thread blocks.
StageGroups connect_stages(DeviceCommunicator& all, int stage, int pipeline);

}  // namespace trireme
