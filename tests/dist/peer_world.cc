#include "tests/dist/peer_world.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "base/error.h"
#include "parallel/nccl_peers.h"
#include "parallel/world.h"
#include "tests/dist/device_memory.h"

namespace trireme {
namespace {

class MpiPeerWorld final : public PeerWorld {
 public:
  MpiPeerWorld(int& argc, char**& argv)
      : environment_(&argc, &argv), host_(environment_.make_control()) {}

  bool start(int64_t row_bytes) {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
      if (host_->rank() == 0) std::printf("skipped: no GPU\n");
      return false;
    }
    shares_ = host_->size() > gpus;
    const int device = environment_.local_rank() % gpus;
    must(cudaSetDevice(device));
    std::string why;
    auto peers = map_peer_memory(*host_, device, cuda::peer_lanes_bytes(host_->size(), row_bytes),
                                 std::make_shared<StopFlag>(), why);
    if (!peers) {
      if (host_->rank() == 0) std::printf("skipped: %s\n", why.c_str());
      return false;
    }
    peers_ = std::move(*peers);
    const char* given = std::getenv("TRIREME_TEST_SEED");
    seed_ = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    host_->broadcast(std::as_writable_bytes(std::span(&seed_, 1)), 0);
    if (host_->rank() == 0)
      std::printf("TRIREME_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed_));
    return true;
  }

  cuda::PeerLanes lanes(int64_t row_bytes) const override {
    return cuda::make_peer_lanes(peers_, row_bytes);
  }
  bool shares_gpus() const override { return shares_; }
  uint64_t seed() const override { return seed_; }
  int agree(int result) override {
    std::vector<int> all(static_cast<size_t>(host_->size()));
    host_->all_gather(std::as_bytes(std::span(&result, 1)), std::as_writable_bytes(std::span(all)));
    return *std::max_element(all.begin(), all.end());
  }

 private:
  MpiEnvironment environment_;
  std::unique_ptr<Communicator> host_;
  PeerBuffers peers_;
  bool shares_ = false;
  uint64_t seed_ = 0;
};

}  // namespace

std::unique_ptr<PeerWorld> make_peer_world(int& argc, char**& argv, int64_t row_bytes) {
  auto world = std::make_unique<MpiPeerWorld>(argc, argv);
  if (!world->start(row_bytes)) return nullptr;
  return world;
}

}  // namespace trireme
