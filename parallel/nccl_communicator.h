// DeviceCommunicator over NCCL. Included by parallel/nccl*.cc alone.
#pragma once

#include <memory>
#include <string>

#include "parallel/device_communicator.h"

namespace trireme {

// Collective over `group`, whose ranks are known to have a GPU each.
std::unique_ptr<DeviceCommunicator> start_nccl_communicator(Communicator& group, int device,
                                                            const std::string& name);

}  // namespace trireme
