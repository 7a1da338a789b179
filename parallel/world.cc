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

}  // namespace trireme
