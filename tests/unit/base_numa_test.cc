#include "base/numa.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/thread_pool.h"

namespace trireme {
namespace {

cpu_set_t allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

std::vector<int> cpus_of(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

cpu_set_t set_of(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return set;
}

class Numa : public testing::Test {
 protected:
  Numa()
      : root_(std::filesystem::temp_directory_path() /
              ("trireme-numa-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(root_);
  }
  ~Numa() override { std::filesystem::remove_all(root_); }
  void node(const std::string& name, const std::string& cpus) const {
    const auto folder = root_ / "sys/devices/system/node" / name;
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "cpulist") << cpus;
  }
  std::string root() const { return root_.string(); }

 private:
  std::filesystem::path root_;
};

TEST_F(Numa, NodesThatThisThreadMayRunOn) {
  EXPECT_TRUE(numa_nodes(root()).empty());  // no such folder
  const std::vector<int> mine = cpus_of(allowed());
  ASSERT_FALSE(mine.empty());
  const std::string one = std::to_string(mine.front());
  const std::string rest = std::to_string(mine.front() + 1) + "-1023\n";
  node("node10", rest);
  node("node2", one + "\n");
  node("node3", "\n");         // memory alone
  node("node4", "5000-6000");  // beyond what a set holds
  node("node5", "-7,x");       // nonsense
  node("nodes", one);          // not a node
  const auto nodes = numa_nodes(root());
  ASSERT_EQ(nodes.size(), mine.size() > 1 ? 2u : 1u);
  EXPECT_EQ(cpus_of(nodes[0]), std::vector<int>{mine.front()});
  const std::vector<int> others(mine.begin() + 1, mine.end());
  if (!others.empty()) {
    EXPECT_EQ(cpus_of(nodes[1]), others);
  }
}

TEST_F(Numa, ListsOfProcessors) {
  const std::vector<int> mine = cpus_of(allowed());
  std::string list = "1020-1021";
  for (const int cpu : mine) list += "," + std::to_string(cpu);
  node("node0", list + "\n");
  const auto nodes = numa_nodes(root());
  ASSERT_EQ(nodes.size(), 1u);
  EXPECT_EQ(cpus_of(nodes[0]), mine);
}

TEST_F(Numa, ThreadsAreDealtOutByProcessors) {
  const std::vector<cpu_set_t> nodes{set_of({0, 1, 2, 3}), set_of({4, 5}), set_of({6, 7})};
  const auto sizes = [&](int threads, int first, int total) {
    std::vector<int> first_cpus;
    for (const cpu_set_t& place : thread_places(nodes, threads, first, total)) {
      first_cpus.push_back(cpus_of(place).front());
    }
    return first_cpus;
  };
  EXPECT_EQ(sizes(8, 0, 8), (std::vector<int>{0, 0, 0, 0, 4, 4, 6, 6}));
  EXPECT_EQ(sizes(4, 0, 4), (std::vector<int>{0, 0, 4, 6}));
  EXPECT_EQ(sizes(1, 0, 1), (std::vector<int>{4}));
  EXPECT_EQ(sizes(4, 0, 8), (std::vector<int>{0, 0, 0, 0}));  // two ranks
  EXPECT_EQ(sizes(4, 4, 8), (std::vector<int>{4, 4, 6, 6}));
  EXPECT_EQ(sizes(16, 0, 16), (std::vector<int>{0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 6, 6, 6, 6}));
  EXPECT_TRUE(thread_places({nodes[0]}, 4, 0, 4).empty());
  EXPECT_TRUE(thread_places({}, 4, 0, 4).empty());
}

// A pool's threads keep to their places, whoever calls, and a caller gets its own back.
TEST_F(Numa, PoolsKeepToTheirPlaces) {
  const cpu_set_t before = allowed();
  const std::vector<int> mine = cpus_of(before);
  if (mine.size() < 2) GTEST_SKIP() << "one processor";
  std::vector<cpu_set_t> places;
  for (int i = 0; i < 4; ++i) places.push_back(set_of({mine[static_cast<size_t>(i) / 2]}));
  ThreadPool pool(4, places);
  const auto check = [&] {
    for (int again = 0; again < 50; ++again) {
      pool.run([&](int thread) {
        EXPECT_EQ(cpus_of(allowed()), cpus_of(places[static_cast<size_t>(thread)]));
      });
    }
  };
  check();
  EXPECT_EQ(cpus_of(allowed()), cpus_of(places[0]));
  pool.release_caller();
  EXPECT_EQ(cpus_of(allowed()), mine);
  std::thread other([&] {
    EXPECT_EQ(cpus_of(allowed()), mine);
    check();
    pool.release_caller();
    EXPECT_EQ(cpus_of(allowed()), mine);
  });
  other.join();
  check();
  pool.release_caller();
  pool.release_caller();  // once more changes nothing
  EXPECT_EQ(cpus_of(allowed()), mine);
  EXPECT_THROW(ThreadPool(3, places), Error);
}

}  // namespace
}  // namespace trireme
