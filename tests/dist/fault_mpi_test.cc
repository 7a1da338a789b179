// A served model in which one rank does something wrong: fault_test.py starts this under mpirun,
// and looks at what the others make of it.
//
//   fault_mpi_test CASE VICTIM LAYOUT LINK [DEVICE]
//
// From its step 40 on, at its next operation on LINK (control, data, tp or device_tp) rank VICTIM:
// is killed (kill), stopped (stop), sleeps for ever (hang), throws (throw), passes over an
// operation and goes on (skip; the only one on device_tp), misreads a plan (plan), or is given
// another one by rank 0 (other_plan).
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "runtime/instance.h"
#include "runtime/worker_messages.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr int kVocab = 259;
constexpr uint64_t kFaultStep = 40;
constexpr uint64_t kSequences = 1000;  // some 4,000 steps: then the fault has not come

struct Plan {
  std::string fault, link;
  int victim = 0;
};

// That the step at which the victim does wrong has come, once.
class FaultTime {
 public:
  explicit FaultTime(const World& world) : ledger_(*world.ledger) {}
  bool has_come() {
    if (done_) return false;
    const LedgerView view = ledger_.view(0);
    if (view.steps.empty() || view.steps.back().step < kFaultStep) return false;
    done_ = true;
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    std::fprintf(stderr, "fault at %ld.%09ld\n", now.tv_sec, now.tv_nsec);
    return true;
  }

 private:
  const Ledger& ledger_;
  bool done_ = false;
};

// Stands between the program and a communicator. As far as the ledger knows, what it passes over
// was never called.
class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> inner, World& world, Plan plan)
      : inner_(std::move(inner)),
        time_(world),
        last_plan_(plan_seed(world.layout.describe())),
        plan_(std::move(plan)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) override {
    if (!passes_over()) inner_->all_reduce_sum(data, count, dtype, stream);
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                  StreamHandle stream) override {
    if (!passes_over()) inner_->all_gather(in, out, stream);
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream) override {
    if (!passes_over()) inner_->broadcast(data, root, stream);
  }
  void barrier() override { inner_->barrier(); }
  void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream) override {
    if (plan_.fault == "other_plan" && to != plan_.victim) {
      return inner_->send(data, to, tag, stream);
    }
    if (passes_over(data)) return;
    if (plan_.fault == "other_plan" && data.back() == std::byte(Order::kPlan)) {
      std::vector<std::byte> plan(data.begin(), data.end() - 1);
      last_plan_ = unseal_plan(plan, 0).sent;
    }
    inner_->send(changed_.empty() ? data : changed_, to, tag, stream);
    changed_.clear();
  }
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream) override {
    if (plan_.fault != "plan" && passes_over()) return;
    inner_->recv(data, from, tag, stream);
    if (plan_.fault == "plan" && data.back() == std::byte(Order::kPlan) && time_.has_come()) {
      data[data.size() / 2] ^= std::byte{4};
    }
  }
  int64_t probe(int from, int tag, Wait wait) override { return inner_->probe(from, tag, wait); }
  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    return inner_->split(color, name);
  }
  void set_agreement(uint64_t value) override { inner_->set_agreement(value); }
  void set_deadline(std::chrono::milliseconds limit) override { inner_->set_deadline(limit); }
  void abort(const std::string& reason) override { inner_->abort(reason); }
  void check() override { inner_->check(); }

 private:
  // `data`: of a send.
  bool passes_over(std::span<const std::byte> data = {}) {
    if (!time_.has_come()) return false;
    if (plan_.fault == "kill") kill(getpid(), SIGKILL);
    if (plan_.fault == "stop") kill(getpid(), SIGSTOP);
    if (plan_.fault == "hang") std::this_thread::sleep_for(std::chrono::hours(1));
    if (plan_.fault == "throw") fail(ErrorCode::kInternal, "the floor is wet");
    if (plan_.fault == "other_plan") change_plan(data);
    return plan_.fault == "skip";
  }
  void change_plan(std::span<const std::byte> data) {
    changed_.assign(data.begin(), data.end() - 1);
    unseal_plan(changed_, last_plan_);
    StepPlan changed;
    decode(std::span<const std::byte>(changed_), changed);
    changed.tokens.back() ^= 1;
    encode(changed, changed_);
    seal_plan(changed_, last_plan_);
    changed_.push_back(data.back());
  }

  std::unique_ptr<Communicator> inner_;
  FaultTime time_;
  uint64_t last_plan_;  // that was sent to the victim
  const Plan plan_;
  std::vector<std::byte> changed_;
};

// The same of a device's sums: passes one over, or none. Sums go through it, not over peer memory.
class FaultyDevice final : public DeviceCommunicator {
 public:
  FaultyDevice(std::unique_ptr<DeviceCommunicator> inner, const World& world, bool skips)
      : inner_(std::move(inner)), time_(world), skips_(skips) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) override {
    if (skips_ && time_.has_come()) return;
    inner_->all_reduce_sum(data, count, dtype, stream);
  }
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                  StreamHandle stream) override {
    inner_->all_gather(in, out, stream);
  }
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream) override {
    inner_->broadcast(data, root, stream);
  }
  void barrier() override { inner_->barrier(); }
  void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream) override {
    inner_->send(data, to, tag, stream);
  }
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream) override {
    inner_->recv(data, from, tag, stream);
  }
  int64_t probe(int from, int tag, Wait wait) override { return inner_->probe(from, tag, wait); }
  std::unique_ptr<DeviceCommunicator> split_device(int color, const std::string& name,
                                                   int blocks) override {
    return inner_->split_device(color, name, blocks);
  }
  Buffer allocate_symmetric(size_t bytes) override { return inner_->allocate_symmetric(bytes); }
  std::optional<PeerBuffers> map_peers(Communicator&, size_t, std::string& why) override {
    why = "a test of sums over NCCL";
    return std::nullopt;
  }
  std::string identity() const override { return inner_->identity() + " tested for faults"; }
  void wait(StreamHandle stream) override { inner_->wait(stream); }
  void set_agreement(uint64_t value) override { inner_->set_agreement(value); }
  void set_deadline(std::chrono::milliseconds limit) override { inner_->set_deadline(limit); }
  void abort(const std::string& reason) override { inner_->abort(reason); }
  void check() override { inner_->check(); }

 private:
  std::unique_ptr<DeviceCommunicator> inner_;
  FaultTime time_;
  const bool skips_;
};

void plant(const Plan& plan, World& world) {
  if (plan.link == "device_tp") {
    world.device_tp = std::make_unique<FaultyDevice>(std::move(world.device_tp), world,
                                                     world.rank == plan.victim);
    return;
  }
  if (world.rank != (plan.fault == "other_plan" ? 0 : plan.victim)) return;
  auto& link = plan.link == "control" ? world.control : plan.link == "data" ? world.data : world.tp;
  link = std::make_unique<FaultyCommunicator>(std::move(link), world, plan);
}

// As `serve` does, under a load that does not end.
void serve(Instance& instance) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t live = 0;
  bool over = false;
  uint64_t next = 0;
  instance.engine().set_sink([&](std::vector<EngineEvent>&& events) {
    const std::lock_guard lock(mutex);
    for (const EngineEvent& event : events) {
      if (event.finish == FinishReason::kError) over = true;
      if (event.finish != FinishReason::kNone) --live;
    }
    changed.notify_all();
  });
  std::thread client([&] {
    for (;;) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return over || live == 0; });
      if (over || next >= kSequences) break;
      std::vector<Sequence> sequences;
      for (uint64_t i = 0; i < 6; ++i, ++next) {
        sequences.push_back(random_sequence(next, kVocab, 5 + static_cast<int>(i) * 9, 24, i % 2));
        sequences.back().id = next;
      }
      live = sequences.size();
      lock.unlock();
      instance.engine().submit(std::move(sequences));
    }
    instance.engine().stop();
  });
  try {
    instance.engine().run();
  } catch (...) {
    client.join();
    throw;
  }
  client.join();
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  if (argc < 5) return 2;
  log::init("warn", "rank " + std::to_string(environment.rank()));
  const char* job = std::getenv("OMPI_MCA_ess_base_jobid");
  std::fprintf(stderr, "process %d job %s\n", getpid(), job == nullptr ? "?" : job);
  const Plan plan{argv[1], argv[4], std::atoi(argv[2])};
  InstanceOptions options = small_options("llama-plain", argv[3]);
  options.device = argc > 5 ? argv[5] : "cpu";
  options.step_timeout_s = 2;
  Instance instance(environment, options, [&](World& world) { plant(plan, world); });
  try {
    if (environment.rank() == 0) {
      serve(instance);
    } else {
      instance.worker().run();
    }
  } catch (const std::exception&) {
    const Watchdog* watchdog = instance.world().watchdog.get();
    if (watchdog != nullptr && watchdog->has_ended()) std::_Exit(kBrokenWorld);
    throw;
  }
  std::fprintf(stderr, "ended well\n");
  return 0;
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
