#include "runtime/instance.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "runtime/memory.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

struct Failure {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

// What each rank's Instance throws; all must throw.
std::vector<Failure> failures(int ranks, const std::function<InstanceOptions(int)>& options) {
  log::init("off");
  auto controls = make_thread_communicators(ranks, "control");
  std::vector<Failure> found(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto at = static_cast<size_t>(rank);
      controls[at]->set_deadline(std::chrono::seconds(20));
      try {
        Instance(std::move(controls[at]), options(rank));
        found[at].message = "no error";
      } catch (const Error& error) {
        found[at] = {error.code(), error.what()};
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return found;
}

void expect_failure(int ranks, const std::function<InstanceOptions(int)>& options, ErrorCode code,
                    const std::string& part) {
  for (const Failure& failure : failures(ranks, options)) {
    EXPECT_EQ(failure.code, code) << failure.message;
    EXPECT_NE(failure.message.find(part), std::string::npos) << failure.message;
  }
}

void expect_failure(int ranks, const InstanceOptions& options, ErrorCode code,
                    const std::string& part) {
  expect_failure(
      ranks, [&](int) { return options; }, code, part);
}

class MemoryLimit {
 public:
  explicit MemoryLimit(const char* bytes) { setenv("TRIREME_MEMORY_LIMIT", bytes, 1); }
  ~MemoryLimit() { unsetenv("TRIREME_MEMORY_LIMIT"); }
};

TEST(Instance, MistakesAreNamedOnEveryRank) {
  const auto with = [](const std::function<void(InstanceOptions&)>& change) {
    auto options = small_options("llama-plain", "tensor=2");
    change(options);
    return options;
  };
  const ErrorCode invalid = ErrorCode::kInvalidArgument;
  expect_failure(2, with([](auto& o) { o.model = "/nowhere/model"; }), ErrorCode::kNotFound,
                 "/nowhere/model: no such file");
  expect_failure(2, with([](auto& o) { o.layout = "tensor=3"; }), invalid, "3");
  expect_failure(2, with([](auto& o) { o.layout = "tensor=nine"; }), invalid, "tensor");
  expect_failure(2, with([](auto& o) { o.kv_dtype = "f8"; }), invalid, "kv_dtype");
  expect_failure(2, with([](auto& o) { o.dtype = "f8"; }), invalid, "dtype: 'f8'");
  expect_failure(2, with([](auto& o) { o.dtype = "f16"; }), invalid, "dtype: 'f16' is for GPUs");
  expect_failure(2, with([](auto& o) { o.max_context = 1 << 20; }), invalid, "max_context");
  expect_failure(2, with([](auto& o) { o.block_size = -1; }), invalid, "block_size");
  expect_failure(2, with([](auto& o) { o.profile = "fast"; }), invalid, "fast");
  expect_failure(2, with([](auto& o) { o.threads = -1; }), invalid, "threads");
  expect_failure(2, with([](auto& o) { o.look_ahead = "maybe"; }), invalid, "maybe");
  const auto ahead = [](const char* layout, int steps) {
    auto options = small_options("llama-plain", layout);
    options.look_ahead = "on";
    options.steps_in_flight = steps;
    return options;
  };
  expect_failure(2, ahead("tensor=2", 1), invalid, "steps_in_flight: 1");
  expect_failure(2, ahead("pipeline=2", 1), invalid, "steps_in_flight: 1");
}

TEST(Instance, ErrorOfOneRankIsThrownOnAll) {
  const auto options = [](int rank) {
    auto result = small_options("llama-plain", "tensor=2,pipeline=2");
    if (rank == 2) result.model = "/only/here";
    return result;
  };
  expect_failure(4, options, ErrorCode::kNotFound, "rank 2 ");
}

TEST(Instance, MemoryIsCheckedBeforeLoading) {
  {
    const MemoryLimit limit("100000000");
    expect_failure(4, small_options("llama-plain", "tensor=2,pipeline=2"),
                   ErrorCode::kResourceExhausted, "missing");
    expect_failure(4, small_options("llama-plain", "tensor=2,pipeline=2"),
                   ErrorCode::kResourceExhausted, "4 ranks need");
    expect_failure(4, small_options("llama-plain", "tensor=2,pipeline=2"),
                   ErrorCode::kResourceExhausted, "TRIREME_MEMORY_LIMIT");
  }
  {
    const MemoryLimit limit("a lot");
    expect_failure(1, small_options("llama-plain", "tensor=1"), ErrorCode::kInvalidArgument,
                   "TRIREME_MEMORY_LIMIT");
  }
  auto options = small_options("llama-plain", "tensor=1");
  options.kv_memory = int64_t{1} << 50;
  options.max_running = 1;
  EXPECT_NO_THROW(EngineWorld{options});  // no more than is wanted is taken
  options.kv_memory = 10000;
  expect_failure(1, options, ErrorCode::kInvalidArgument, "kv_memory");
}

// Exit code 7: refused as it should be.
[[noreturn]] void start_with_little_address_space() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  rlimit limit{};
  limit.rlim_cur = limit.rlim_max = pages * static_cast<rlim_t>(getpagesize()) + (100u << 20);
  setrlimit(RLIMIT_AS, &limit);
  auto options = small_options("llama-plain", "tensor=1");
  options.token_budget = 100000;  // scratch for so many tokens is not there
  try {
    const Instance instance(make_single_communicator("control"), options);
    std::_Exit(1);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(error.code() == ErrorCode::kResourceExhausted ? 7 : 2);
  }
}

TEST(Instance, AddressSpaceLimitIsRefusedBeforeLoading) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers reserve address space";
#endif
  EXPECT_EXIT(start_with_little_address_space(), testing::ExitedWithCode(7), "RLIMIT_AS.*missing");
}

TEST(Instance, ContextIsLimitedByTheKvMemory) {
  auto options = small_options("llama-plain", "tensor=1");
  options.max_context = 0;
  options.kv_memory = 20 * 4 * 2 * 3 * 16 * 16 * 4;  // 20 blocks of 16 tokens
  EngineWorld world(options);
  EXPECT_EQ(world.instance().pool_config().blocks, std::vector<int32_t>{20});
  EXPECT_EQ(world.instance().scheduler_config().max_context, 320);
  EXPECT_EQ(world.instance().kv_bytes(), options.kv_memory);
}

TEST(Instance, UnevenRanksAgreeOnTheFewestBlocks) {
  auto options = small_options("llama-plain", "tensor=2");  // 2 and 1 KV heads
  options.kv_memory = 24 * 4 * 2 * 2 * 16 * 16 * 4;
  EngineWorld world(options);
  EXPECT_EQ(world.instance().pool_config().blocks, std::vector<int32_t>{24});
}

TEST(Instance, DefaultsComeFromTheModel) {
  InstanceOptions options = small_options("llama3-f16", "tensor=1");
  options.max_context = 0;
  options.kv_memory = 0;
  options.max_running = 2;
  EngineWorld world(options);
  const Instance& instance = world.instance();
  EXPECT_EQ(world.instance().scheduler_config().max_context, instance.config().max_context);
  EXPECT_EQ(instance.tokenizer(), nullptr);
  EXPECT_EQ(instance.scheduler_config().steps_in_flight, 1);
  EXPECT_FALSE(instance.scheduler_config().look_ahead);  // on CPU
}

TEST(Instance, StagesLookAhead) {
  InstanceOptions options = small_options("llama-plain", "pipeline=3");
  {
    EngineWorld world(options);
    EXPECT_EQ(world.instance().scheduler_config().steps_in_flight, 4);
    EXPECT_TRUE(world.instance().scheduler_config().look_ahead);
  }
  options.look_ahead = "off";
  {
    EngineWorld world(options);
    EXPECT_EQ(world.instance().scheduler_config().steps_in_flight, 3);
  }
  options.look_ahead = "auto";
  options.steps_in_flight = 2;
  EngineWorld world(options);
  EXPECT_EQ(world.instance().scheduler_config().steps_in_flight, 2);
  EXPECT_FALSE(world.instance().scheduler_config().look_ahead);
}

class FakeRoot {
 public:
  FakeRoot() {
    root_ =
        std::filesystem::temp_directory_path() / ("trireme-memory-" + std::to_string(::getpid()));
    std::filesystem::remove_all(root_);
  }
  ~FakeRoot() { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    const auto file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string path() const { return root_.string(); }

 private:
  std::filesystem::path root_;
};

TEST(Memory, LeastOfAllLimits) {
  const FakeRoot root;
  EXPECT_EQ(memory_limits(root.path()).host, INT64_MAX);  // nothing can be read
  root.put("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");
  EXPECT_EQ(memory_limits(root.path()).host, 4096000);
  root.put("proc/self/cgroup", "0::/a/b\n");
  root.put("sys/fs/cgroup/a/memory.max", "3000000\n");
  root.put("sys/fs/cgroup/a/memory.current", "2500000\n");
  root.put("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 500000\n");
  root.put("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(memory_limits(root.path()).host, 1000000);
  EXPECT_EQ(memory_limits(root.path()).host_source, "cgroup limit");
  root.put("proc/self/cgroup", "4:cpu,memory:/c\n");
  root.put("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "700000\n");
  root.put("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "800000\n");
  EXPECT_EQ(memory_limits(root.path()).host, 0);
  root.put("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(memory_limits(root.path()).host, 4096000);
}

TEST(Memory, CoresOfAQuota) {
  const FakeRoot root;
  const int cores = core_limits(root.path()).cores;
  EXPECT_GE(cores, 1);
  root.put("proc/self/cgroup", "0::/x\n");
  root.put("sys/fs/cgroup/x/cpu.max", "50000 100000\n");
  EXPECT_EQ(core_limits(root.path()).cores, 1);
  root.put("sys/fs/cgroup/x/cpu.max", "max 100000\n");
  EXPECT_EQ(core_limits(root.path()).cores, cores);
}

TEST(Memory, BytesReadWell) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(int64_t{5} << 30), "5.00 GiB");
}

}  // namespace
}  // namespace trireme
