// A served model under mpirun: greedy and sampled tokens equal those of one rank.
#include <cstdio>
#include <map>
#include <thread>

#include "base/log.h"
#include "runtime/instance.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr int kVocab = 259;

std::vector<Sequence> requests() {
  std::vector<Sequence> sequences;
  for (uint64_t i = 0; i < 12; ++i) {
    sequences.push_back(random_sequence(i, kVocab, 1 + static_cast<int>(i) * 9, 16, i % 2 == 1));
  }
  return sequences;
}

// Runs the engine on this thread, as `serve` does; the requests come from another one.
std::map<SequenceId, std::vector<int32_t>> serve(Instance& instance, int rounds) {
  std::map<SequenceId, std::vector<int32_t>> tokens;
  std::mutex mutex;
  std::condition_variable changed;
  size_t ended = 0;
  instance.engine().set_sink([&](std::vector<EngineEvent>&& events) {
    const std::lock_guard lock(mutex);
    for (const EngineEvent& event : events) {
      if (event.token >= 0) tokens[event.id].push_back(event.token);
      if (event.finish != FinishReason::kNone) ++ended;
    }
    changed.notify_all();
  });
  std::thread client([&] {
    for (int round = 0; round < rounds; ++round) {  // idle in between: ranks sleep and wake
      auto sequences = requests();
      const size_t count = sequences.size();
      for (size_t i = 0; i < count; ++i) {
        sequences[i].id = static_cast<SequenceId>(round) * 1000 + i;
      }
      instance.engine().submit(std::move(sequences));
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return ended == count * static_cast<size_t>(round + 1); });
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    instance.engine().stop();
  });
  instance.engine().run();
  client.join();
  return tokens;
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  log::init("warn", "rank " + std::to_string(environment.rank()));
  int failed = 0;
  struct Run {
    std::string layout, look_ahead;
  };
  std::vector<Run> runs = {{"", "off"}, {"pipeline=2", "off"}, {"pipeline=2", "on"}};
  if (environment.size() == 4) {
    runs = {{"tensor=2,pipeline=2", "off"},
            {"pipeline=4", "off"},
            {"tensor=2,pipeline=2", "on"},
            {"pipeline=4", "on"}};
  }
  for (const auto& [layout, look_ahead] : runs) {
    InstanceOptions options = small_options("llama-plain", layout);
    options.look_ahead = look_ahead;
    Instance instance(environment, options);
    if (environment.rank() != 0) {
      instance.worker().run();
      continue;
    }
    const auto tokens = serve(instance, 3);
    EngineWorld single(small_options("llama-plain", "tensor=1"));
    const auto expected = single.run(requests());
    for (const auto& [id, produced] : tokens) {
      if (produced == expected[id % 1000].tokens) continue;
      std::printf("layout '%s': request %d differs from one rank\n", layout.c_str(),
                  static_cast<int>(id));
      failed = 1;
    }
    if (tokens.size() != 36) failed = 1;
    std::printf("layout '%s', look-ahead %s: %zu outputs compared\n", layout.c_str(),
                look_ahead.c_str(), tokens.size());
  }
  return failed;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    return trireme::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    trireme::MpiEnvironment::abort(1);
  }
}
