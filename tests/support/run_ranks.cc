#include "tests/support/run_ranks.h"

#include <gtest/gtest.h>

#include <exception>
#include <thread>

namespace trireme {

void run_ranks(int size, const std::function<void(Communicator&)>& body) {
  auto ranks = make_thread_communicators(size, "test");
  std::vector<std::thread> threads;
  for (auto& communicator : ranks) {
    threads.emplace_back([&body, &communicator] {
      communicator->set_deadline(std::chrono::seconds(20));
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << communicator->rank() << ": " << error.what();
        communicator->abort("another rank failed");
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace trireme
