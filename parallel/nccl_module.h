// What the program and libtrireme_nccl.so agree on. No CUDA and no NCCL header: included by both.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "parallel/device_communicator.h"

namespace trireme {

// One GPU, whatever the index by which a process sees it.
struct GpuIdentity {
  uint8_t uuid[16] = {};
  char name[256] = {};   // "NVIDIA H100 80GB HBM3"
  char bus_id[32] = {};  // "0000:1b:00.0"
};

struct NcclModule {
  const char* build;  // equal to kNcclModuleBuild of the program, or the module is not used
  GpuIdentity (*identify)(int device);
  LinkKind (*link)(int device, const GpuIdentity& peer);  // kHost where it cannot tell
  std::unique_ptr<DeviceCommunicator> (*make)(Communicator& group, int device,
                                              const std::string& name);
};

inline constexpr char kNcclModuleFile[] = "libtrireme_nccl.so";
inline constexpr char kNcclModuleEntry[] = "trireme_nccl_module";
// Program and module share C++ types, so they must come from one build: the number is raised when
// communicator.h, device_communicator.h, topology.h or this file changes.
inline constexpr char kNcclModuleBuild[] = "trireme-nccl-3";

}  // namespace trireme

extern "C" const trireme::NcclModule* trireme_nccl_module();
