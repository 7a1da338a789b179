#include "parallel/nccl_peers.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "parallel/host_id.h"
#include "parallel/nccl_check.h"

namespace trireme {
namespace {

// This rank's buffer and its peers' as mapped here. A peer may free its buffer while it is still
// mapped here: nobody touches it any more, and the driver keeps the pages until it is closed.
class PeerMemory {
 public:
  PeerMemory(int device, std::shared_ptr<StopFlag> stop)
      : device_(device), stop_(std::move(stop)) {}
  ~PeerMemory() {
    cudaSetDevice(device_);
    for (void* peer : mapped_) cudaIpcCloseMemHandle(peer);
    cudaFree(own_);
  }
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  cudaIpcMemHandle_t allocate(size_t bytes) {
    cudaIpcMemHandle_t handle{};
    check_cuda(cudaMalloc(&own_, bytes), "cudaMalloc");
    check_cuda(cudaMemset(own_, 0, bytes), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check_cuda(cudaIpcGetMemHandle(&handle, own_), "cudaIpcGetMemHandle");
    return handle;
  }
  std::byte* map(const cudaIpcMemHandle_t& handle) {
    void* peer = nullptr;
    check_cuda(cudaIpcOpenMemHandle(&peer, handle, cudaIpcMemLazyEnablePeerAccess),
               "cudaIpcOpenMemHandle");
    mapped_.push_back(peer);
    return static_cast<std::byte*>(peer);
  }
  std::byte* own() const { return static_cast<std::byte*>(own_); }

 private:
  int device_;
  std::shared_ptr<StopFlag> stop_;
  void* own_ = nullptr;
  std::vector<void*> mapped_;
};

struct Offer {
  cudaIpcMemHandle_t handle{};
  HostId host{};
  char problem[256] = {};
};

// Does `work` and returns what went wrong, at most as long as an Offer's.
template <typename Work>
std::string attempt(Work work) {
  try {
    work();
    return {};
  } catch (const Error& error) {
    cudaGetLastError();  // not of later calls
    return error.what();
  }
}

template <typename T>
std::vector<T> gather(Communicator& host, const T& mine) {
  std::vector<T> all(static_cast<size_t>(host.size()));
  host.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

}  // namespace

StopFlag::StopFlag() {
  void* word = nullptr;
  check_cuda(cudaHostAlloc(&word, 64, cudaHostAllocMapped | cudaHostAllocPortable),
             "cudaHostAlloc");
  std::memset(word, 0, 64);
  word_ = static_cast<uint32_t*>(word);
}

StopFlag::~StopFlag() { cudaFreeHost(word_); }

std::optional<PeerBuffers> map_peer_memory(Communicator& host, int device, size_t bytes,
                                           std::shared_ptr<StopFlag> stop, std::string& why) {
  if (host.size() > PeerBuffers::kMostRanks) {
    why = fmt::format("{} ranks are more than {}", host.size(), PeerBuffers::kMostRanks);
    return std::nullopt;
  }
  const auto put = [](const std::string& problem, char(&to)[256]) {
    std::strncpy(to, problem.c_str(), sizeof to - 1);
  };
  auto memory = std::make_shared<PeerMemory>(device, stop);
  Offer mine;
  mine.host = host_id();
  put(attempt([&] {
        check_cuda(cudaSetDevice(device), "cudaSetDevice");
        mine.handle = memory->allocate(bytes);
      }),
      mine.problem);
  const std::vector<Offer> offers = gather(host, mine);
  for (size_t rank = 0; rank < offers.size(); ++rank) {
    if (offers[rank].host != offers[0].host) {
      why = fmt::format("rank {} is on another host", rank);
    } else if (offers[rank].problem[0] != 0) {
      why = fmt::format("rank {}: {}", rank, offers[rank].problem);
    } else {
      continue;
    }
    return std::nullopt;
  }
  PeerBuffers buffers;
  buffers.rank = host.rank();
  buffers.size = host.size();
  buffers.bytes = bytes;
  buffers.stop = stop->word();
  Offer outcome;
  put(attempt([&] {
        for (int rank = 0; rank < host.size(); ++rank) {
          buffers.data[static_cast<size_t>(rank)] =
              rank == host.rank() ? memory->own()
                                  : memory->map(offers[static_cast<size_t>(rank)].handle);
        }
      }),
      outcome.problem);
  const std::vector<Offer> outcomes = gather(host, outcome);
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (outcomes[rank].problem[0] == 0) continue;
    why = fmt::format("rank {}: {}", rank, outcomes[rank].problem);
    return std::nullopt;
  }
  buffers.owner = std::move(memory);
  return buffers;
}

}  // namespace trireme
