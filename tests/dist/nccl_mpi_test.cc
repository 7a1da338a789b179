// The communicator of device memory: under launch/mpirun with one GPU a rank (2 or 4 ranks). All
// ranks run every test in the same order. Where there are fewer GPUs than ranks only what is
// refused there is tested; without a GPU the program ends with 77 (skipped), saying so.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "parallel/stage_edge.h"
#include "parallel/world.h"
#include "tests/dist/nccl_fixture.h"
#include "tests/support/communicator_cases.h"

namespace trireme {

Communicator* g_host = nullptr;
int g_device = 0;
uint64_t g_seed = 0;

namespace {

DeviceCommunicator& shared() {
  static const auto ranks = connect("shared");
  return *ranks;
}

// Elements as their type stores them.
std::vector<std::byte> encode(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> out(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
    if (dtype == DType::kF32) std::memcpy(&out[i * 4], &values[i], 4);
    if (dtype != DType::kF32) std::memcpy(&out[i * 2], &half, 2);
  }
  return out;
}

float decode(const std::byte* at, DType dtype) {
  float value = 0;
  uint16_t half = 0;
  std::memcpy(&value, at, dtype == DType::kF32 ? 4 : 0);
  std::memcpy(&half, at, dtype == DType::kF32 ? 0 : 2);
  if (dtype == DType::kBF16) return bf16_to_f32(half);
  return dtype == DType::kF16 ? f16_to_f32(half) : value;
}

std::vector<std::byte> input(uint64_t seed, int rank, size_t count, DType dtype) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = test_value(seed, rank, i);
  return encode(values, dtype);
}

// Sums are rounded to the type at most once a rank.
void expect_sum(const std::vector<std::byte>& got, uint64_t seed, int ranks, size_t count,
                DType dtype, const std::string& what) {
  const double eps = dtype == DType::kF32 ? 0x1p-23 : dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
  std::vector<std::vector<std::byte>> terms;
  for (int rank = 0; rank < ranks; ++rank) terms.push_back(input(seed, rank, count, dtype));
  for (size_t i = 0; i < count; ++i) {
    double sum = 0, size = 0;
    for (const auto& term : terms) {
      const double value = decode(&term[i * size_of(dtype)], dtype);
      sum += value;
      size += std::abs(value);
    }
    const double value = decode(&got[i * size_of(dtype)], dtype);
    ASSERT_LE(std::abs(value - sum), ranks * eps * size + 1e-7) << what << ", element " << i;
  }
}

// The same bytes on every rank.
void expect_same_everywhere(Communicator& host, const std::vector<std::byte>& data,
                            const std::string& what) {
  std::vector<std::byte> all(data.size() * static_cast<size_t>(host.size()));
  host.all_gather(data, all);
  for (int rank = 1; rank < host.size(); ++rank) {
    ASSERT_EQ(std::memcmp(&all[0], &all[data.size() * static_cast<size_t>(rank)], data.size()), 0)
        << what << ": ranks 0 and " << rank << " differ";
  }
}

void check_all_reduces(DeviceCommunicator& ranks, std::byte* memory, size_t bytes,
                       const char* where) {
  const TestStream stream;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const size_t count : {1, 3, 7, 577, 4096, 4097, 65'537, 1'048'575}) {
      const size_t offset = count % 3 * 16;
      ASSERT_LE(offset + count * size_of(dtype), bytes);
      const uint64_t seed = g_seed + count;
      must(cudaMemset(memory, 0x7f, bytes));
      to_device(memory + offset, input(seed, ranks.rank(), count, dtype));
      must(cudaDeviceSynchronize());
      ranks.all_reduce_sum(memory + offset, static_cast<int64_t>(count), dtype, stream.handle());
      ranks.wait(stream.handle());
      const auto got = from_device<std::byte>(memory + offset, count * size_of(dtype));
      const auto after = from_device<uint8_t>(memory + offset + got.size(), 1);
      EXPECT_EQ(after[0], 0x7f);
      const auto what = fmt::format("{} {}[{}]", where, to_string(dtype), count);
      expect_sum(got, seed, ranks.size(), count, dtype, what);
      expect_same_everywhere(*g_host, got, what);
    }
  }
}

// `bytes` of noise.
std::vector<std::byte> noise(uint64_t seed, int rank, size_t bytes) {
  auto data = input(seed, rank, bytes / 4 + 1, DType::kF32);
  data.resize(bytes);
  return data;
}

TEST_F(Nccl, AllReduce) {
  const DeviceMemory memory(5 << 20);
  check_all_reduces(shared(), memory.data(), 5 << 20, "plain");
}

TEST_F(Nccl, AllReduceInSymmetricMemory) {
  const Buffer memory = shared().allocate_symmetric(5 << 20);
  for (const uint8_t byte : from_device<uint8_t>(memory.data(), memory.size())) {
    ASSERT_EQ(byte, 0);
  }
  check_all_reduces(shared(), memory.data(), memory.size(), "symmetric");
}

TEST_F(Nccl, AllGatherAndBroadcast) {
  DeviceCommunicator& ranks = shared();
  const auto size = static_cast<size_t>(ranks.size());
  const TestStream stream;
  for (const size_t bytes : {1, 7, 4097, 300'001}) {
    const DeviceMemory in(bytes), out(bytes * size);
    to_device(in.data(), noise(g_seed, ranks.rank(), bytes));
    ranks.all_gather(in.span(), out.span(), stream.handle());
    ranks.wait(stream.handle());
    for (size_t rank = 0; rank < size; ++rank) {
      const auto expected = noise(g_seed, static_cast<int>(rank), bytes);
      ASSERT_EQ(from_device<std::byte>(out.data() + rank * bytes, bytes), expected) << bytes;
    }
    for (int root = 0; root < ranks.size(); ++root) {
      to_device(in.data(), noise(g_seed + 1, ranks.rank(), bytes));
      ranks.broadcast(in.span(), root, stream.handle());
      ranks.wait(stream.handle());
      const auto expected = noise(g_seed + 1, root, bytes);
      ASSERT_EQ(from_device<std::byte>(in.data(), bytes), expected) << bytes << " from " << root;
    }
  }
  EXPECT_THROW(ranks.all_gather(DeviceMemory(4).span(), DeviceMemory(4).span()), Error);
}

// Around a ring, even ranks sending first.
TEST_F(Nccl, SendAndReceive) {
  DeviceCommunicator& ranks = shared();
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  const TestStream stream;
  for (const size_t bytes : {1, 37, 70'001, 16 << 20}) {
    const DeviceMemory out(bytes), in(bytes);
    to_device(out.data(), noise(g_seed, ranks.rank(), bytes));
    for (const bool sends : {ranks.rank() % 2 == 0, ranks.rank() % 2 != 0}) {
      if (sends) ranks.send(out.span(), next, 1, stream.handle());
      if (!sends) ranks.recv(in.span(), previous, 1, stream.handle());
    }
    ranks.wait(stream.handle());
    const auto expected = noise(g_seed, previous, bytes);
    ASSERT_EQ(from_device<std::byte>(in.data(), bytes), expected) << bytes;
  }
  const DeviceMemory one(1);
  expect_error(ErrorCode::kUnimplemented, {"itself"},
               [&] { ranks.send(one.span(), ranks.rank(), 0); });
  expect_error(ErrorCode::kInvalidArgument, {"no rank"}, [&] { ranks.recv(one.span(), -1, 0); });
  expect_error(ErrorCode::kUnimplemented, {"probe"}, [&] { ranks.probe(next, 0, Wait::kNever); });
}

// Captured once and replayed with new inputs, with uncaptured operations in between.
void replay_graphs(DeviceCommunicator& ranks, std::byte* memory, size_t count,
                   cudaStreamCaptureMode mode) {
  const size_t bytes = count * 2;
  const DeviceMemory source(bytes), out(bytes), eager(bytes);
  const TestStream stream;
  Graph graph(
      stream.get(),
      [&] {
        must(cudaMemcpyAsync(memory, source.data(), bytes, cudaMemcpyDeviceToDevice, stream.get()));
        ranks.all_reduce_sum(memory, static_cast<int64_t>(count), DType::kBF16, stream.handle());
        must(cudaMemcpyAsync(out.data(), memory, bytes, cudaMemcpyDeviceToDevice, stream.get()));
      },
      mode);
  for (uint64_t round = 0; round < 10; ++round) {
    const uint64_t seed = g_seed + round;
    to_device(source.data(), input(seed, ranks.rank(), count, DType::kBF16));
    to_device(eager.data(), input(seed + 100, ranks.rank(), count, DType::kBF16));
    must(cudaMemset(out.data(), 0x7f, bytes));
    must(cudaDeviceSynchronize());
    graph.launch(stream.get());
    ranks.all_reduce_sum(eager.data(), static_cast<int64_t>(count), DType::kBF16, stream.handle());
    ranks.wait(stream.handle());
    const auto what = fmt::format("round {} of {} elements", round, count);
    expect_sum(from_device<std::byte>(out.data(), bytes), seed, ranks.size(), count, DType::kBF16,
               what);
    expect_sum(from_device<std::byte>(eager.data(), bytes), seed + 100, ranks.size(), count,
               DType::kBF16, what);
  }
}

TEST_F(Nccl, ReplayedGraphs) {
  const Buffer symmetric = shared().allocate_symmetric(1 << 20);
  const DeviceMemory plain(1 << 20);
  for (const size_t count : {4096, 33'333}) {
    for (std::byte* memory : {plain.data(), symmetric.data()}) {
      replay_graphs(shared(), memory, count, cudaStreamCaptureModeThreadLocal);
    }
  }
  replay_graphs(shared(), plain.data(), 5000, cudaStreamCaptureModeGlobal);
  replay_graphs(shared(), plain.data(), 5000, cudaStreamCaptureModeRelaxed);
}

TEST_F(Nccl, RefusesOddAddresses) {
  const DeviceMemory data(64);
  expect_error(ErrorCode::kInvalidArgument, {"16 bytes"},
               [&] { shared().all_reduce_sum(data.data() + 2, 4, DType::kBF16); });
}

TEST_F(Nccl, SplitByColor) {
  const int color = g_host->rank() % 2;
  const auto half = shared().split_device(color, "half");
  EXPECT_EQ(half->name(), "half");
  EXPECT_EQ(half->rank(), g_host->rank() / 2);
  EXPECT_EQ(half->size(), (g_host->size() + 1 - color) / 2);
  const DeviceMemory data(4);
  to_device(data.data(), std::vector<float>{static_cast<float>(g_host->rank())});
  const TestStream stream;
  half->all_reduce_sum(data.data(), 1, DType::kF32, stream.handle());
  half->wait(stream.handle());
  float expected = 0;
  for (int rank = color; rank < g_host->size(); rank += 2) expected += static_cast<float>(rank);
  EXPECT_EQ(from_device<float>(data.data(), 1)[0], expected);
  half->barrier();
}

// A world as a server has it: sums within the stages while activations pass between them.
TEST_F(Nccl, WorldOfStages) {
  const ModelShape model{.layers = 6,
                         .hidden = 64,
                         .q_heads = 8,
                         .kv_heads = 4,
                         .head_dim = 16,
                         .ffn = 256,
                         .vocab = 515};
  const int size = g_host->size();
  for (const int pipeline : {1, 2, size}) {
    if (size % pipeline != 0) continue;
    LayoutSpec spec;
    for (int stage = 0; stage < pipeline; ++stage) spec.stages.push_back({size / pipeline, 0});
    World world = make_world(g_host->split(0, "control"), make_layout(spec, model, size));
    connect_devices(world, g_device);
    EXPECT_EQ(world.device_data != nullptr, pipeline > 1);
    ASSERT_EQ(world.device_tp != nullptr, size > pipeline);
    const TestStream compute, edges;
    if (world.device_tp) {
      EXPECT_EQ(world.device_tp->rank(), world.tp->rank());
      EXPECT_EQ(world.device_tp->size(), world.tp->size());
      const DeviceMemory data(2 * 999);
      to_device(data.data(), input(g_seed, world.tp->rank(), 999, DType::kBF16));
      world.device_tp->all_reduce_sum(data.data(), 999, DType::kBF16, compute.handle());
      world.device_tp->wait(compute.handle());
      expect_sum(from_device<std::byte>(data.data(), 2 * 999), g_seed, world.tp->size(), 999,
                 DType::kBF16, "tp");
    }
    if (pipeline == 1) continue;
    EXPECT_EQ(world.device_incoming != nullptr, !world.first_stage());
    EXPECT_EQ(world.device_outgoing != nullptr, !world.last_stage());
    StageEdge edge = make_stage_edge(world);
    for (int64_t tokens = 1; tokens < 300; tokens *= 7) {
      const auto bytes = static_cast<size_t>(tokens * model.hidden * 2);
      const auto expected = input(g_seed + 5, 0, bytes / 2, DType::kBF16);
      const DeviceMemory x(bytes);
      if (world.first_stage()) to_device(x.data(), expected);
      const MatrixView view{x.data(), DType::kBF16, tokens, model.hidden, model.hidden};
      if (edge.has_previous()) edge.recv(view, edges.handle());
      if (edge.has_next()) edge.send(view, edges.handle());
      world.device_data->wait(edges.handle());
      ASSERT_EQ(from_device<std::byte>(x.data(), bytes), expected) << tokens;
    }
    world.control->barrier();
  }
}

class OnlyFailures : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", g_host->rank(),
                 result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.summary());
  }
};

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  auto world = environment.make_control();
  world->set_deadline(std::chrono::seconds(30));
  g_host = world.get();
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    if (world->rank() == 0)
      std::printf("skipped: there is no GPU on %s\n", environment.host().c_str());
    return 77;
  }
  g_device = environment.local_rank() % gpus;
  g_seed = std::random_device()();
  world->broadcast(std::as_writable_bytes(std::span(&g_seed, 1)), 0);
  if (world->rank() == 0) std::printf("seed %llu\n", static_cast<unsigned long long>(g_seed));
  testing::InitGoogleTest(&argc, argv);
  if (world->rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new OnlyFailures);
  }
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::run(argc, argv); }
