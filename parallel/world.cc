#include "parallel/world.h"

#include "base/error.h"

namespace trireme {

World make_world(std::unique_ptr<Communicator> control, ParallelLayout layout) {
  if (layout.world() != control->size()) {
    fail(ErrorCode::kInvalidArgument, "layout: {} takes {} ranks, but the world has {}",
         layout.describe(), layout.world(), control->size());
  }
  World world;
  world.rank = control->rank();
  world.layout = std::move(layout);
  world.data = control->split(0, "data");
  world.tp = control->split(world.stage(), "tp");
  world.doorbell = make_doorbell(*control);
  world.control = std::move(control);
  return world;
}

void connect_devices(World& world, int device) {
  if (world.layout.world() == 1) return;
  if (world.layout.pipeline() == 1) {
    world.device_tp = make_nccl_communicator(*world.tp, device, "device tp");
    return;
  }
  world.device_data = make_nccl_communicator(*world.data, device, "device data");
  // Of one family: an abort ends both, and neither waits for the other's kernels.
  world.device_tp = world.device_data->split_device(world.stage(), "device tp");
  if (world.device_tp->size() == 1) world.device_tp.reset();
}

}  // namespace trireme
