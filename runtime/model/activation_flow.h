// Activations into and out of a stage. On hosts they are sent and received in place. On devices
// they travel on streams and communicators of their own, through two buffers each way, so that a
// stage sends step k while it computes step k + 1.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "base/buffer.h"
#include "kernels/backend.h"
#include "parallel/stage_edge.h"

namespace trireme {

class ActivationFlow {
 public:
  // `edge`: over communicators of the backend's memory; on a device those of its two ways must
  // differ, and nobody else may use them. Activations are float32, `hidden` wide. References must
  // outlive this.
  ActivationFlow(StageEdge& edge, Backend& backend, int64_t max_tokens, int64_t hidden);

  // Memory of the backend's that it takes.
  static int64_t bytes(const Backend& backend, bool has_previous, bool has_next, int64_t max_tokens,
                       int64_t hidden);

  // In the order of the steps, for each: receive() before its ops are queued, send() after. Ops
  // that are queued after receive() find the activations in x; x may be written over by ops that
  // are queued after send().
  void receive(MatrixView x);
  void send(MatrixView x);

 private:
  struct Slot {
    Buffer memory;
    std::unique_ptr<StreamMark> filled, emptied;
  };
  struct Way {
    std::unique_ptr<SideStream> stream;
    std::array<Slot, 2> slots;
    size_t turn = 0;
    std::unique_ptr<StreamMark> reached, passed;  // for what does not fit the slots
  };

  void open(Way& way, int64_t bytes);
  void receive_in_place(MatrixView x);
  void send_in_place(MatrixView x);
  void stamp(DevicePart part, const Way& way);

  StageEdge& edge_;
  Backend& backend_;
  bool device_;
  Way in_, out_;
  std::unique_ptr<StreamMark> computed_;  // the last step's layers
};

}  // namespace trireme
