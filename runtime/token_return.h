// The way back in a pipeline that looks ahead: how the first stage's ranks learn what the last
// stage has sampled, before rank 0 has planned with it. Tokens that are chosen on a device go to
// the first stage's devices, where the next step's embedding reads them; all others travel over
// `data`.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "parallel/world.h"
#include "runtime/step_plan.h"
#include "runtime/worker_slots.h"

namespace trireme {

class TokenReturn {
 public:
  struct Settings {
    bool look_ahead = false;
    int32_t slots = 0;
    int32_t shares = 1;         // a plan names what was sampled so many steps before it, or earlier
    size_t most_on_device = 0;  // rows of a step that the last stage chooses on its device; 0: none
  };
  // Collective over the world. Does nothing without look_ahead or with one stage. References must
  // outlive it.
  TokenReturn(World& world, Backend& backend, WorkerSlots& slots, const Settings& settings);

  // Whether the tokens of this plan's rows are chosen on the last stage's device: the same answer
  // on all ranks.
  bool on_device(const StepPlan& plan) const;

  // First of several stages, in this order for each step. begin(): takes in what has come. need():
  // a row of slot `id` names the token of `position`: on return WorkerSlots has it, or the ops that
  // are queued from now on find it on the device (then the slot's token is still pending).
  // expect(): what this plan's rows will sample.
  void begin(uint64_t step);
  void need(SlotId id, int32_t position);
  void expect(const StepPlan& plan);
  // No step is in flight: takes in all that is still to come.
  void settle();

  // Last of several stages: the choice of a step's tokens is queued, or their host knows them.
  void tell_chosen();
  void tell(const StepResult& result);

 private:
  struct Row {
    SlotId slot = 0;
    int32_t position = 0;  // of the token
    uint64_t admission = 0;  // of the slot
  };

  void agree(size_t most_on_device);
  void hear();
  void hear_what_came();
  void receive_chosen();

  World& world_;
  Backend& backend_;
  WorkerSlots& slots_;
  const int32_t shares_;
  bool awaits_ = false;
  bool tells_ = false;
  size_t most_on_device_ = 0;
  std::deque<std::vector<Row>> awaited_;    // over `data`: by step, the oldest first
  std::deque<uint64_t> awaited_on_device_;  // steps
  // On devices.
  Buffer chosen_;           // int32 by slot
  std::vector<int> peers_;  // in World::device_tokens: who sends to this rank, or to whom it sends
  std::unique_ptr<SideStream> stream_;
  std::unique_ptr<StreamMark> reached_, arrived_;
  bool waits_ = false;  // the ops of this step do
};

}  // namespace trireme
