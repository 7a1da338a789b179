// The boundary between two pipeline stages: activations [tokens, hidden] pass from every tensor
// rank of one stage (each holds the whole, after its last all-reduce) to every tensor rank of the
// next. The two sides may have different tensor degrees: receiver j hears from sender j mod a, in
// whole rows, so that no second collective is needed.
#pragma once

#include <vector>

#include "base/matrix_view.h"
#include "parallel/communicator.h"
#include "parallel/layout.h"

namespace trireme {

class StageEdge {
 public:
  // `world` spans all ranks of the layout and must outlive the edge: its memory is the
  // activations', host (World::data) or device (World::device_data).
  StageEdge(Communicator& world, const ParallelLayout& layout);

  bool has_previous() const { return from_ >= 0; }
  bool has_next() const { return next_stage_; }

  // x is contiguous (stride == cols), of any dtype, the same on both sides. On host memory send()
  // returns once x may be overwritten; on a device x may be once `stream` has passed the send,
  // which waits there for the receivers: so it is best given a stream of its own.
  void recv(MatrixView x, StreamHandle stream = {});
  void send(MatrixView x, StreamHandle stream = {});

 private:
  Communicator* world_;
  int from_ = -1;
  bool next_stage_ = false;
  std::vector<int> to_;
};

}  // namespace trireme
