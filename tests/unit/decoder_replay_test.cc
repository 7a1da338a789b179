// Steps that a backend replays, beside the same ones done op by op: the ledger must not tell them
// apart, and must know what the device was given.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "parallel/ledger_communicator.h"
#include "runtime/model/decoder.h"
#include "runtime/model/tensor_sums_start.h"
#include "tests/support/idle_backend.h"

namespace trireme {
namespace {

// Takes collectives, and does them at once or records them, as a CUDA stream does.
struct Device {
  uint64_t done = 0;
  uint64_t* recording = nullptr;  // collectives of the graph
  void take() { ++(recording != nullptr ? *recording : done); }
};

class DeviceSums final : public PeerSums {
 public:
  explicit DeviceSums(Device& device) : device_(device) {}
  // The embeddings' sum, which is of float32, is left to the communicator.
  bool takes(int64_t, int64_t, DType dtype) const override { return dtype == DType::kBF16; }
  void sum(MatrixView, PeerShots, int) override { device_.take(); }
  void add_rms_norm(MatrixView, MatrixView, const float*, float, MatrixView, PeerShots) override {
    device_.take();
  }

 private:
  Device& device_;
};

// Rank 0 of two.
class DeviceLink final : public DeviceCommunicator {
 public:
  explicit DeviceLink(Device& device) : device_(device) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  const std::string& name() const override { return name_; }
  void all_reduce_sum(void*, int64_t, DType, StreamHandle) override { device_.take(); }
  void all_gather(std::span<const std::byte>, std::span<std::byte>, StreamHandle) override {}
  void broadcast(std::span<std::byte>, int, StreamHandle) override {}
  void barrier() override {}
  void send(std::span<const std::byte>, int, int, StreamHandle) override {}
  void recv(std::span<std::byte>, int, int, StreamHandle) override {}
  int64_t probe(int, int, Wait) override { return -1; }
  void set_agreement(uint64_t) override {}
  void set_deadline(std::chrono::milliseconds) override {}
  void abort(const std::string&) override {}
  void check() override {}
  Buffer allocate_symmetric(size_t bytes) override { return Buffer(bytes); }
  std::optional<PeerBuffers> map_peers(Communicator&, size_t, std::string&) override {
    return PeerBuffers{};
  }
  std::string identity() const override { return "none"; }
  std::unique_ptr<DeviceCommunicator> split_device(int, const std::string&, int) override {
    return nullptr;
  }
  void wait(StreamHandle) override {}

 private:
  Device& device_;
  const std::string name_ = "device tp";
};

// Computes nothing. Where it replays, it does so as the CUDA backend does: what is repeated is done
// the first time and recorded the second time, and from then on nobody is asked for it.
class ReplayingBackend final : public IdleBackend {
 public:
  ReplayingBackend(Device& device, bool replays) : device_(device), replays_(replays) {}

  void repeat(const RepeatKey& key, const std::function<void()>& work) override {
    if (!replays_) return work();
    Graph& graph = graphs_[key];
    if (graph.calls++ == 0) return work();
    if (graph.calls == 2) {
      device_.recording = &graph.collectives;
      work();
      device_.recording = nullptr;
    } else {
      ++replayed_;
    }
    device_.done += graph.collectives;
  }
  void forget_recorded() override { graphs_.clear(); }
  int replayed() const { return replayed_; }

  DType activation_dtype() const override { return DType::kBF16; }
  size_t peer_bytes(int, int64_t) const override { return 1; }
  std::unique_ptr<PeerSums> make_peer_sums(PeerBuffers, int64_t) override {
    return std::make_unique<DeviceSums>(device_);
  }
  Weight make_weight(const WeightSlice&) override { return {}; }

 private:
  struct Graph {
    int calls = 0;
    uint64_t collectives = 0;
  };
  Device& device_;
  bool replays_;
  int replayed_ = 0;
  std::map<RepeatKey, Graph> graphs_;
};

constexpr int kLayers = 2;
constexpr uint64_t kSumsOfAStep = 1 + 2 * kLayers;  // of the embeddings, and of each layer's blocks

ModelConfig small_model() {
  ModelConfig config;
  config.hidden = 16;
  config.q_heads = config.kv_heads = 2;
  config.head_dim = 8;
  config.ffn = 32;
  config.vocab = 128;
  config.ropes.resize(1);
  config.ropes[0].rotary_dim = 8;
  config.layers.resize(kLayers);
  return config;
}

// What one step gives the decoder: decode rows, or one row of a prompt.
struct Step {
  int32_t tokens = 1;
  bool prompt = false;
  bool forget = false;  // before it
};

struct Written {
  std::vector<std::string> operations;
  std::vector<uint64_t> queued;  // before each step, and after the last one
  std::vector<uint64_t> done;    // by the device, likewise
  int replayed = 0;
};

Written run(const std::vector<Step>& steps, bool replays) {
  const ModelConfig config = small_model();
  const ParallelLayout layout = make_layout({{{2, 0}}}, config.shape(1), 2);
  Ledger ledger;
  Device device;
  ReplayingBackend backend(device, replays);
  const auto host = make_single_communicator();
  const auto tp = make_ledger_communicator(
      std::unique_ptr<DeviceCommunicator>(std::make_unique<DeviceLink>(device)), ledger, {0, 1});
  const auto sums = make_tensor_sums(*host, tp.get(), backend, config.hidden, &ledger, {0, 1});
  DecoderWeights weights;
  weights.layers.resize(kLayers);
  Decoder decoder(config, layout, 0, std::move(weights), backend, *sums, 8);
  decoder.set_ledger(&ledger);
  const KvGroups groups = kv_groups(config);
  const KvCache cache(config, groups, {0, kLayers}, 1, DType::kBF16, 16, {1}, backend);

  Written written;
  uint64_t number = 100;
  const auto begin_step = [&] {
    ++number;
    ledger.begin_step(number, number * 10);
    written.queued.push_back(ledger.view(0).steps.back().queued);
    written.done.push_back(device.done);
  };
  for (const Step& step : steps) {
    begin_step();
    if (step.forget) backend.forget_recorded();
    const auto count = static_cast<size_t>(step.tokens);
    const std::vector<int32_t> tokens(count, 1);
    const int32_t block = 0;
    std::vector<AttentionRow> rows;
    std::vector<int32_t> logit_tokens;
    if (step.prompt) rows.push_back({0, step.tokens, 0, &block});
    for (int32_t i = 0; i < step.tokens && !step.prompt; ++i) {
      rows.push_back({i, 1, 0, &block});
      logit_tokens.push_back(i);
    }
    const std::vector<std::vector<const int32_t*>> tables{{rows.size(), &block}};
    decoder.begin({tokens, {}, rows, tables, logit_tokens}, groups, cache);
    decoder.forward();
    ledger.end_step(number);
  }
  begin_step();
  for (const LedgerRecord& record : ledger.view().operations) {
    const LedgerCall& call = record.call;
    written.operations.push_back(fmt::format(
        "{}: step {} plan {}: {} {} {} bytes, group {} number {} peer {}{}", record.sequence,
        record.step, record.plan, to_string(call.op), to_string(call.dtype), call.bytes, call.group,
        call.number, call.peer, record.end > 0 ? "" : ", open"));
  }
  written.replayed = backend.replayed();
  return written;
}

void expect_the_same(const std::vector<Step>& steps, int replayed) {
  const Written plain = run(steps, false), replays = run(steps, true);
  EXPECT_EQ(plain.replayed, 0);
  EXPECT_EQ(replays.replayed, replayed);
  EXPECT_EQ(replays.operations, plain.operations);
  ASSERT_EQ(plain.operations.size(), steps.size() * kSumsOfAStep);
  EXPECT_EQ(replays.queued, plain.queued);
  EXPECT_EQ(replays.queued, replays.done);
  for (size_t i = 0; i < plain.queued.size(); ++i) EXPECT_EQ(plain.queued[i], i * kSumsOfAStep);
}

TEST(DecoderReplay, IsWrittenOncePerStep) {
  expect_the_same({{}, {}, {}, {}, {}}, 3);
  // The sixth step's first sum, of a row's 16 floats, and its last, of as many bf16.
  const Written written = run({{}, {}, {}, {}, {}, {}}, true);
  ASSERT_EQ(written.operations.size(), 6 * kSumsOfAStep);
  EXPECT_EQ(written.operations[25],
            "26: step 106 plan 1060: all_reduce_sum f32 64 bytes, group 0 number 6 peer -1");
  EXPECT_EQ(written.operations[29],
            "30: step 106 plan 1060: all_reduce_sum bf16 32 bytes, group 1 number 24 peer -1");
}

// A graph of each number of rows, with a tape of its own; prompts are never replayed.
TEST(DecoderReplay, OfSeveralGraphsAndPromptsBetween) {
  const Step two{2}, prompt{5, true};
  expect_the_same({{}, two, {}, {}, prompt, two, two, {}, prompt, two}, 4);
}

TEST(DecoderReplay, OfWhatIsRecordedAnew) {
  const Step anew{1, false, true};
  expect_the_same({{}, {}, {}, anew, {}, {}, {}}, 3);
}

}  // namespace
}  // namespace trireme
