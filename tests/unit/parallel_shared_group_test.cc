// Collectives through shared memory, with threads in place of processes so that the thread
// sanitizer sees every access.
#include "parallel/shared_group.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "base/buffer.h"
#include "base/error.h"
#include "tests/support/communicator_cases.h"
#include "tests/support/errors.h"

namespace trireme {
namespace {

// Only what collective_cases() use.
class SharedCommunicator final : public Communicator {
 public:
  SharedCommunicator(std::byte* memory, int rank, int size, bool crowded)
      : rank_(rank),
        size_(size),
        group_(memory, rank, size, {"shared", std::chrono::seconds(20), crowded, nullptr}) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }
  using Communicator::all_reduce_sum;
  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle) override {
    group_.all_reduce_sum(host_floats(data, count, dtype, name_));
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out, StreamHandle) override {
    if (out.size() != in.size() * static_cast<size_t>(size_)) {
      fail(ErrorCode::kInvalidArgument, "sizes");
    }
    group_.all_gather(in, out);
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle) override {
    group_.broadcast(data, root);
  }
  void barrier() override { group_.barrier(); }
  void send(std::span<const std::byte>, int, int, StreamHandle) override {}
  void recv(std::span<std::byte>, int, int, StreamHandle) override {}
  int64_t probe(int, int, Wait) override { return -1; }
  std::unique_ptr<Communicator> split(int, const std::string&) override { return nullptr; }
  void set_agreement(uint64_t value) override { group_.set_agreement(value); }
  void set_deadline(std::chrono::milliseconds limit) override { group_.set_limit(limit); }
  void abort(const std::string& reason) override { group_.close(reason); }
  void check() override {}

 private:
  int rank_, size_;
  std::string name_ = "shared";
  SharedGroup group_;
};

void run_shared(int size, bool crowded, const std::function<void(SharedCommunicator&)>& body) {
  Buffer memory(SharedGroup::bytes(size));
  std::memset(memory.data(), 0, memory.size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      SharedCommunicator communicator(memory.data(), rank, size, crowded);
      try {
        body(communicator);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
        communicator.abort("another rank failed");
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

class SharedWorld : public testing::TestWithParam<std::tuple<CommunicatorCase, int>> {};

TEST_P(SharedWorld, Case) {
  const auto& [one, size] = GetParam();
  run_shared(size, size > 2, one.run);
}

INSTANTIATE_TEST_SUITE_P(SharedGroup, SharedWorld,
                         testing::Combine(testing::ValuesIn(collective_cases()),
                                          testing::Values(1, 2, 3, 5)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(SharedGroup, DeadlineNamesOperationAndRankAndClosesTheGroup) {
  std::atomic<bool> late{false};
  run_shared(3, true, [&](SharedCommunicator& ranks) {
    std::vector<float> data(6);
    if (ranks.rank() == 2) {
      while (!late) std::this_thread::yield();
      expect_error(ErrorCode::kAborted, "waited 30 ms for rank 2",
                   [&] { ranks.all_reduce_sum(data, {}); });
    } else if (ranks.rank() == 0) {
      ranks.set_deadline(std::chrono::milliseconds(30));
      expect_error(ErrorCode::kDeadlineExceeded,
                   "rank 0 of 3: all_reduce_sum of 24 bytes: waited 30 ms for rank 2",
                   [&] { ranks.all_reduce_sum(data, {}); });
      late = true;
    } else {
      expect_error(ErrorCode::kAborted, "waited 30 ms for rank 2",
                   [&] { ranks.all_reduce_sum(data, {}); });
    }
  });
}

TEST(SharedGroup, MismatchedCollectivesAreRefused) {
  run_shared(2, true, [](SharedCommunicator& ranks) {
    std::vector<float> data(ranks.rank() == 0 ? 8 : 9);
    expect_error(ErrorCode::kInternal, "mismatch", [&] { ranks.all_reduce_sum(data, {}); });
  });
  run_shared(2, true, [](SharedCommunicator& ranks) {
    std::vector<float> data(8);
    expect_error(ErrorCode::kInternal, "in barrier of 0", [&] {
      if (ranks.rank() == 0) {
        ranks.barrier();
      } else {
        ranks.all_reduce_sum(data, {});
      }
    });
  });
}

TEST(SharedGroup, RanksThatDoNotAgreeAreRefused) {
  for (const size_t count : {8, 50'000}) {  // by one rank, and in parts
    run_shared(2, true, [count](SharedCommunicator& ranks) {
      std::vector<float> data(count);
      ranks.set_agreement(0xfeed);
      ranks.all_reduce_sum(data, {});
      ranks.set_agreement(ranks.rank() == 1 ? 0xdead : 0xbeef);
      const Error error = error_of([&] { ranks.all_reduce_sum(data, {}); });
      EXPECT_EQ(error.code(), ErrorCode::kInternal);
      EXPECT_NE(std::string(error.what()).find("plan 000000000000dead"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("plan 000000000000beef"), std::string::npos);
    });
  }
}

TEST(SharedGroup, CloseWakesWaiters) {
  run_shared(2, true, [](SharedCommunicator& ranks) {
    if (ranks.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ranks.abort("a flood");
    }
    expect_error(ErrorCode::kAborted, "a flood", [&] { ranks.barrier(); });
  });
}

TEST(SharedMemory, TwoMappingsSeeEachOther) {
  std::string name;
  const SharedMemory first = SharedMemory::create(4096, name);
  ASSERT_NE(first.data(), nullptr);
  const SharedMemory second = SharedMemory::open(name, 4096);
  SharedMemory::unlink(name);
  ASSERT_NE(second.data(), nullptr);
  EXPECT_EQ(first.data()[100], std::byte{0});
  first.data()[100] = std::byte{7};
  EXPECT_EQ(second.data()[100], std::byte{7});
  EXPECT_EQ(SharedMemory::open(name, 4096).data(), nullptr);
}

}  // namespace
}  // namespace trireme
