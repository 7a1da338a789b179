// Which way a sum takes: the table's format and file, its choice by measurement, and that the
// choice is followed. On host memory, with a backend whose measurements are made up.
#include "runtime/model/tensor_sums_start.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "parallel/device_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/idle_backend.h"
#include "tests/support/model_files.h"

namespace trireme {
namespace {

using Way = SumChoice::Way;

constexpr int64_t kWidth = 64;
constexpr int64_t kRows = 16;
constexpr int64_t kMostTaken = 8;  // rows

// What was done last.
struct Trace {
  Way way = Way::kCommunicator;
  int blocks = 0;
  int64_t bytes = 0;
  int measured = 0;
};

class FakePeers final : public PeerSums {
 public:
  explicit FakePeers(Trace& trace) : trace_(trace) {}
  bool takes(int64_t rows, int64_t /*cols*/, DType /*dtype*/) const override {
    return rows <= kMostTaken;
  }
  void sum(MatrixView x, PeerShots shots, int blocks) override { note(x, shots, blocks); }
  void add_rms_norm(MatrixView, MatrixView delta, const float*, float, MatrixView,
                    PeerShots shots) override {
    note(delta, shots, 0);
  }

 private:
  void note(MatrixView x, PeerShots shots, int blocks) {
    trace_.way = shots == PeerShots::kOne ? Way::kOneShot : Way::kTwoShots;
    trace_.blocks = blocks;
    trace_.bytes = x.rows * x.cols * static_cast<int64_t>(size_of(x.dtype));
  }
  Trace& trace_;
};

// One shot is best up to 1 KB, two shots with 16 blocks up to 2 KB, the communicator beyond; but
// rank 1 makes one shot slow at 512 bytes, so that there two shots are chosen by all.
double cost(const Trace& trace, int rank) {
  if (trace.way == Way::kOneShot) {
    if (trace.bytes == 512 && rank == 1) return 9e-6;
    return trace.bytes <= 1024 ? 1e-6 : 8e-6;
  }
  if (trace.way == Way::kTwoShots) {
    return trace.bytes > 2048 ? 7e-6 : trace.blocks == 16 ? 2e-6 : 3e-6;
  }
  return 4e-6;
}

class MeasuringBackend final : public IdleBackend {
 public:
  MeasuringBackend(Trace& trace, int rank) : trace_(trace), rank_(rank) {}
  DType activation_dtype() const override { return DType::kF32; }
  Weight make_weight(const WeightSlice&) override { fail(ErrorCode::kInternal, "no weights here"); }
  double measure(const std::function<void()>& work, int) override {
    trace_ = {Way::kCommunicator, 0, 0, trace_.measured + 1};
    work();
    return cost(trace_, rank_);
  }

 private:
  Trace& trace_;
  int rank_;
};

// Threads' communicators, as if on a device whose peers can be mapped.
class FakeDevice final : public DeviceCommunicator {
 public:
  FakeDevice(Communicator& inner, std::string identity)
      : inner_(inner), identity_(std::move(identity)) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  const std::string& name() const override { return inner_.name(); }
  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle) override {
    inner_.all_reduce_sum(data, count, dtype);
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out, StreamHandle) override {
    inner_.all_gather(in, out);
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle) override {
    inner_.broadcast(data, root);
  }
  void barrier() override { inner_.barrier(); }
  void send(std::span<const std::byte>, int, int, StreamHandle) override { unused(); }
  void recv(std::span<std::byte>, int, int, StreamHandle) override { unused(); }
  int64_t probe(int, int, Wait) override { return -1; }
  void set_agreement(uint64_t) override {}
  void set_deadline(std::chrono::milliseconds) override {}
  void abort(const std::string&) override {}
  void check() override {}
  Buffer allocate_symmetric(size_t bytes) override { return Buffer(bytes); }
  std::optional<PeerBuffers> map_peers(Communicator&, size_t, std::string&) override { return {}; }
  std::string identity() const override { return identity_; }
  std::unique_ptr<DeviceCommunicator> split_device(int, const std::string&, int) override {
    return nullptr;
  }
  void wait(StreamHandle) override {}

 private:
  [[noreturn]] static void unused() { fail(ErrorCode::kInternal, "not used here"); }
  Communicator& inner_;
  std::string identity_;
};

struct Matrices {
  std::vector<float> residual = std::vector<float>(kRows * kWidth);
  std::vector<float> delta = residual, out = residual;
  std::vector<float> norm = std::vector<float>(kWidth);
  SumBuffers buffers() {
    return {matrix_f32(residual.data(), kRows, kWidth), matrix_f32(delta.data(), kRows, kWidth),
            matrix_f32(out.data(), kRows, kWidth), norm.data()};
  }
};

struct Rank {
  Trace trace;
  SumTable table;
  Way followed = Way::kCommunicator;  // by a sum of 2 rows
  int blocks = 0;
};

// Two ranks that use the kept table, or measure; then sum.
std::vector<Rank> start(const std::string& identity) {
  auto host = make_thread_communicators(2, "tp");
  std::vector<Rank> ranks(2);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ranks.size(); ++r) {
    threads.emplace_back([&, r] {
      Rank& rank = ranks[r];
      MeasuringBackend backend(rank.trace, static_cast<int>(r));
      FakeDevice device(*host[r], identity);
      TensorSums sums(device, backend, std::make_unique<FakePeers>(rank.trace));
      Matrices matrices;
      tune_sums(sums, *host[r], device, matrices.buffers());
      rank.table = sums.table();
      rank.trace.way = Way::kCommunicator;
      sums.add_up(matrices.buffers().residual.row_range(0, 2));
      rank.followed = rank.trace.way;
      rank.blocks = rank.trace.blocks;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ranks;
}

class TensorSumsTest : public testing::Test {
 protected:
  TensorSumsTest() { setenv("TRIREME_CACHE", folder_.path().c_str(), 1); }
  ~TensorSumsTest() override { unsetenv("TRIREME_CACHE"); }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      names.push_back(entry.path().string());
    }
    return names;
  }
  TempDirectory folder_;
};

void expect_as_measured(const std::vector<SumChoice>& choices) {
  // Rows of 256 bytes (float32, as the activations of this test are): 256 to 2048.
  const std::vector<std::pair<int64_t, Way>> expected{
      {256, Way::kOneShot}, {512, Way::kTwoShots}, {1024, Way::kOneShot}, {2048, Way::kTwoShots}};
  ASSERT_EQ(choices.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(choices[i].bytes, expected[i].first);
    EXPECT_EQ(to_string(choices[i].way), std::string(to_string(expected[i].second))) << i;
  }
}

TEST_F(TensorSumsTest, TheSlowestRankDecidesAndAllFollow) {
  const auto ranks = start("a GPU");
  for (const Rank& rank : ranks) {
    EXPECT_GT(rank.trace.measured, 0);
    expect_as_measured(rank.table.fused);
    expect_as_measured(rank.table.plain);
    EXPECT_EQ(rank.table.plain[1].blocks, 16);
    EXPECT_EQ(rank.table.fused[1].blocks, 0);
    EXPECT_DOUBLE_EQ(rank.table.plain[1].microseconds, 2.0);
    EXPECT_EQ(rank.followed, Way::kTwoShots);  // of 512 bytes
    EXPECT_EQ(rank.blocks, 16);
    EXPECT_EQ(rank.table.of(true, 2049).way, Way::kCommunicator);
    EXPECT_EQ(rank.table.of(true, 1).way, Way::kOneShot);
  }
}

TEST_F(TensorSumsTest, IsKeptByMachine) {
  const auto measured = start("a GPU");
  ASSERT_EQ(files().size(), 1u);
  const auto kept = start("a GPU");
  for (const Rank& rank : kept) {
    EXPECT_EQ(rank.trace.measured, 0);
    EXPECT_EQ(format_sum_table(rank.table, "k"), format_sum_table(measured[0].table, "k"));
    EXPECT_EQ(rank.followed, Way::kTwoShots);
  }
  const auto other = start("another GPU");
  for (const Rank& rank : other) EXPECT_GT(rank.trace.measured, 0);
  EXPECT_EQ(files().size(), 2u);
}

// What cannot be used is measured again, and replaced.
TEST_F(TensorSumsTest, BrokenFilesAreMeasuredAgain) {
  start("a GPU");
  ASSERT_EQ(files().size(), 1u);
  const std::string path = files()[0];
  std::ifstream file(path);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  };
  for (const std::string& text :
       {whole.substr(0, whole.size() / 2), std::string("[]"), std::string("\xff{"),
        with("\"version\": 1", "\"version\": 2"), with("a GPU", "b GPU"), with("one-shot", "none"),
        with("\"bytes\": 512", "\"bytes\": 4"), with("\"bytes\": 256", "\"bytes\": -1"),
        with("\"blocks\": 16", "\"blocks\": 1e9"), with("\"plain\"", "\"plane\"")}) {
    std::ofstream(path) << text;
    for (const Rank& rank : start("a GPU")) {
      EXPECT_GT(rank.trace.measured, 0) << text;
      expect_as_measured(rank.table.plain);
    }
    std::ifstream again(path);
    EXPECT_EQ((std::string{std::istreambuf_iterator<char>(again), {}}), whole) << text;
  }
}

TEST_F(TensorSumsTest, NoPlaceToKeepIt) {
  setenv("TRIREME_CACHE", "/proc/nothing", 1);
  for (const Rank& rank : start("a GPU")) expect_as_measured(rank.table.fused);
  setenv("TRIREME_CACHE", "", 1);
  EXPECT_EQ(sum_table_file("x"), "");
  for (const Rank& rank : start("a GPU")) expect_as_measured(rank.table.fused);
}

TEST_F(TensorSumsTest, TheEnvironmentDecides) {
  for (const Way way : {Way::kCommunicator, Way::kOneShot, Way::kTwoShots}) {
    setenv("TRIREME_ALL_REDUCE", to_string(way), 1);
    for (const Rank& rank : start("a GPU")) EXPECT_EQ(rank.followed, way);
  }
  setenv("TRIREME_ALL_REDUCE", "three-shots", 1);
  Trace trace;
  MeasuringBackend backend(trace, 0);
  auto single = make_single_communicator();
  EXPECT_EQ(code_of([&] { TensorSums(*single, backend); }), ErrorCode::kInvalidArgument);
  unsetenv("TRIREME_ALL_REDUCE");
}

}  // namespace
}  // namespace trireme
