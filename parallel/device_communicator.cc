#include "parallel/device_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/module.h"
#include "parallel/host_id.h"
#include "parallel/nccl_module.h"

namespace trireme {
namespace {

const NcclModule& load_nccl_module() {
  const char* named = std::getenv("TRIREME_NCCL");
  std::vector<std::string> places = {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2",
                                     "/usr/local/cuda/lib/libnccl.so.2"};
  if (named != nullptr && *named != 0) places = {named};
  const bool found = preload_library(places);
  if (!found && places.size() == 1) {
    fail(ErrorCode::kUnavailable, "TRIREME_NCCL: {} does not load", named);
  }
  void* entry = nullptr;
  try {
    entry = load_module(kNcclModuleFile, kNcclModuleEntry);
  } catch (const Error& error) {
    if (found) throw;
    fail(ErrorCode::kUnavailable,
         "{}; several GPUs need NCCL: put the folder of libnccl.so.2 into LD_LIBRARY_PATH, or its "
         "path into TRIREME_NCCL",
         error.what());
  }
  const NcclModule* module = reinterpret_cast<decltype(&trireme_nccl_module)>(entry)();
  if (std::strcmp(module->build, kNcclModuleBuild) == 0) return *module;
  fail(ErrorCode::kUnavailable, "{} is of another build of this program ({}, not {})",
       kNcclModuleFile, module->build, kNcclModuleBuild);
}

// What one rank tells the others before anything is started that could wait for it.
struct Report {
  GpuIdentity gpu;
  int device = 0;
  char host[64] = {};
  char node[64] = {};  // kNodeVariable's value
  int code = -1;  // an ErrorCode if this rank cannot take part
  char text[1024] = {};

  std::string where() const { return fmt::format("GPU {} of {}", device, host); }
};

std::vector<Report> exchange(Communicator& group, const Report& mine) {
  std::vector<Report> all(static_cast<size_t>(group.size()));
  group.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

// All ranks have the same reports, so all throw or none.
void refuse(const std::vector<Report>& reports, const std::string& name) {
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    const Report& one = reports[rank];
    if (one.code < 0) continue;
    fail(static_cast<ErrorCode>(one.code), "{}: rank {} on {}: {}", name, rank, one.where(),
         one.text);
  }
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    std::string others;
    for (size_t other = rank + 1; other < reports.size(); ++other) {
      if (std::memcmp(reports[rank].gpu.uuid, reports[other].gpu.uuid, 16) != 0) continue;
      // Tests emulate nodes whose ranks have the same GPUs.
      if (std::strcmp(reports[rank].node, reports[other].node) != 0) continue;
      others += fmt::format(" and rank {} ({})", other, reports[other].where());
    }
    if (others.empty()) continue;
    const GpuIdentity& gpu = reports[rank].gpu;
    fail(
        ErrorCode::kInvalidArgument,
        "{}: rank {} ({}){} would share one GPU ({} at {}): every rank needs one of its own; start "
        "fewer ranks on this host, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
        name, rank, reports[rank].where(), others, gpu.name, gpu.bus_id);
  }
}

}  // namespace

std::vector<LinkKind> device_links(Communicator& group, int device) {
  GpuIdentity mine;
  const NcclModule* module = nullptr;
  try {
    module = &load_nccl_module();
    mine = module->identify(device);
  } catch (const Error&) {  // connect_devices() will say so, if the layout has several ranks
    module = nullptr;
  }
  std::vector<GpuIdentity> all(static_cast<size_t>(group.size()));
  group.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  std::vector<LinkKind> links(all.size(), LinkKind::kHost);
  for (size_t rank = 0; module != nullptr && rank < all.size(); ++rank) {
    links[rank] = module->link(device, all[rank]);
  }
  return links;
}

std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Communicator& group, int device,
                                                           const std::string& name) {
  Report mine;
  mine.device = device;
  gethostname(mine.host, sizeof mine.host - 1);
  if (const char* node = std::getenv(kNodeVariable)) {
    std::strncpy(mine.node, node, sizeof mine.node - 1);
  }
  const NcclModule* module = nullptr;
  try {
    module = &load_nccl_module();
    mine.gpu = module->identify(device);
  } catch (const Error& error) {
    mine.code = static_cast<int>(error.code());
    std::strncpy(mine.text, error.what(), sizeof mine.text - 1);
  }
  refuse(exchange(group, mine), name);
  return module->make(group, device, name);
}

}  // namespace trireme
