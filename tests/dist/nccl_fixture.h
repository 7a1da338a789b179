// What the tests of device communicators share: the world, one communicator of all ranks, inputs.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "parallel/device_communicator.h"
#include "tests/dist/device_memory.h"

namespace trireme {

extern Communicator* g_host;
extern int g_device;
extern uint64_t g_seed;  // fresh in every run, the same on all ranks

inline std::unique_ptr<DeviceCommunicator> connect(const std::string& name) {
  auto ranks = make_nccl_communicator(*g_host, g_device, name);
  ranks->set_deadline(std::chrono::seconds(20));
  return ranks;
}

template <typename Call>
void expect_error(ErrorCode code, const std::vector<std::string>& parts, Call call) {
  try {
    call();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), code) << text;
    for (const auto& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

// Skipped where ranks outnumber GPUs.
class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    must(cudaGetDeviceCount(&count));
    if (count < g_host->size()) GTEST_SKIP() << count << " GPUs for " << g_host->size() << " ranks";
    must(cudaSetDevice(g_device));
  }
  void TearDown() override { g_host->barrier(); }
};

// `work` captured, to be replayed.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& work,
        cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    must(cudaStreamBeginCapture(stream, mode));
    work();
    must(cudaStreamEndCapture(stream, &graph_));
    must(cudaGraphInstantiate(&replay_, graph_, 0));
  }
  ~Graph() {
    cudaGraphExecDestroy(replay_);
    cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) { must(cudaGraphLaunch(replay_, stream)); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
};

}  // namespace trireme
