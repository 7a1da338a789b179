#include "parallel/nccl_module.h"

#include <cstdlib>
#include <cstring>

#include "parallel/nccl_check.h"
#include "parallel/nccl_communicator.h"

namespace trireme {
namespace {

GpuIdentity identify(int device) {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (device < 0 || device >= count) {
    fail(ErrorCode::kInvalidArgument, "there is no such GPU among the {} that this process sees",
         count);
  }
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion");
  if (version / 100 < NCCL_VERSION_CODE / 100) {
    fail(ErrorCode::kUnavailable, "NCCL is of version {}, older than the {} this was built with",
         version, NCCL_VERSION_CODE);
  }
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  GpuIdentity gpu;
  static_assert(sizeof gpu.uuid == sizeof properties.uuid.bytes);
  std::memcpy(gpu.uuid, properties.uuid.bytes, sizeof gpu.uuid);
  static_assert(sizeof gpu.name == sizeof properties.name);
  std::memcpy(gpu.name, properties.name, sizeof gpu.name);
  check_cuda(cudaDeviceGetPCIBusId(gpu.bus_id, sizeof gpu.bus_id, device), "cudaDeviceGetPCIBusId");
  return gpu;
}

// Peer access over PCIe has no native atomics; over NVLink it has.
LinkKind link(int device, const GpuIdentity& peer) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return LinkKind::kHost;
  for (int other = 0; other < count; ++other) {
    cudaDeviceProp properties{};
    if (other == device || cudaGetDeviceProperties(&properties, other) != cudaSuccess) continue;
    if (std::memcmp(properties.uuid.bytes, peer.uuid, sizeof peer.uuid) != 0) continue;
    int access = 0, atomics = 0;
    if (cudaDeviceGetP2PAttribute(&access, cudaDevP2PAttrAccessSupported, device, other) !=
            cudaSuccess ||
        cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, device, other) !=
            cudaSuccess ||
        access == 0) {
      return LinkKind::kHost;
    }
    return atomics != 0 ? LinkKind::kNvlink : LinkKind::kPcie;
  }
  return LinkKind::kHost;
}

}  // namespace
}  // namespace trireme

// NVLink multicast is never used, whatever the environment says: NCCL reads this variable at its
// first call, which comes after this one, and has no other switch that turns it off.
const trireme::NcclModule* trireme_nccl_module() {
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  static const trireme::NcclModule module{trireme::kNcclModuleBuild, &trireme::identify,
                                          &trireme::link, &trireme::start_nccl_communicator};
  return &module;
}
