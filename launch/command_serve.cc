// trireme serve: the server on every rank.
#include <atomic>
#include <csignal>
#include <ctime>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "launch/command.h"
#include "runtime/coordinator.h"

#ifndef TRIREME_VERSION
#define TRIREME_VERSION "0"
#endif

namespace trireme {
namespace {

struct ServeOptions {
  InstanceOptions instance;
  CoordinatorConfig coordinator;
  int frontend_threads = 2;
  double grace_s = 0.5;
  int keep_s = 60;
};

sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

// Ends the server when SIGINT or SIGTERM arrives; on ranks other than 0 they are ignored, since
// rank 0 ends those. While the model loads a signal ends the whole job at once.
//
// The signals must be blocked before any thread is made (MPI makes some), so that none of them dies
// of one: block_ending_signals() is the first thing that serve() does.
class SignalWatch {
 public:
  explicit SignalWatch(bool root) : state_(root ? State::kLoading : State::kIgnoring) {
    thread_ = std::thread([this] { watch(); });
  }
  ~SignalWatch() {
    done_ = true;
    thread_.join();
  }
  // From here on a signal calls `end`, once, on the watch's thread.
  void arm(std::function<void()> end) {
    const std::lock_guard lock(mutex_);
    end_ = std::move(end);
    state_ = State::kServing;
  }
  // From here on signals are ignored; a call of `end` that has begun has returned.
  void disarm() {
    const std::lock_guard lock(mutex_);
    state_ = State::kIgnoring;
  }

 private:
  enum class State { kLoading, kServing, kIgnoring };

  void watch() {
    const sigset_t set = ending_signals();
    const timespec tick{0, 100'000'000};
    while (!done_) {
      if (sigtimedwait(&set, nullptr, &tick) <= 0) continue;
      const std::lock_guard lock(mutex_);
      if (state_ == State::kLoading) MpiEnvironment::abort(1);
      if (state_ != State::kServing) continue;
      state_ = State::kIgnoring;
      end_();
    }
  }

  std::mutex mutex_;
  State state_;
  std::function<void()> end_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

void block_ending_signals() {
  const sigset_t set = ending_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

ServerDescription describe(Instance& instance, const InstanceOptions& options) {
  ServerDescription description;
  description.version = TRIREME_VERSION;
  description.layout = instance.world().layout.describe();
  description.ranks = instance.world().layout.world();
  description.backend = instance.backend().description();
  description.profile = options.profile;
  description.scheduler = instance.scheduler_config();
  description.pool = instance.pool_config();
  description.model = instance.config();
  if (instance.tokenizer()) description.chat_template = instance.tokenizer()->spec().chat_template;
  return description;
}

void serve_root(Instance& instance, Coordinator& coordinator, SignalWatch& signals,
                const ServeOptions& options) {
  Engine& engine = instance.engine();
  FrontendConfig config;
  config.threads = options.frontend_threads;
  config.max_context = instance.scheduler_config().max_context;
  config.vocab = instance.config().vocab;
  config.eos_ids = instance.config().eos_ids;
  config.keep = std::chrono::seconds(options.keep_s);
  Frontend frontend(engine, instance.tokenizer(), config);
  const auto grace = std::chrono::milliseconds(static_cast<int64_t>(options.grace_s * 1000));
  // However this ends, no call and no signal may use the frontend or the engine afterwards.
  const auto leave = [&] {
    coordinator.shutdown(std::chrono::milliseconds(0));
    signals.disarm();
  };
  try {
    coordinator.serve(frontend, engine, describe(instance, options.instance));
    const auto& listen = options.coordinator.listen;
    log::info("serving on {}:{}", listen.substr(0, listen.rfind(':')), coordinator.port());
    signals.arm([&] {
      log::info("ending: live requests have {:.1f} s", options.grace_s);
      coordinator.shutdown(grace);
      engine.stop();
    });
    engine.run();
  } catch (...) {
    leave();
    throw;
  }
  leave();
  log::info("ended");
}

int serve(CommandContext& context, const ServeOptions& options) {
  block_ending_signals();
  MpiEnvironment environment(context.argc, context.argv);
  const bool root = environment.rank() == 0;
  const auto who = environment.size() == 1
                       ? std::string()
                       : fmt::format("rank {} {}", environment.rank(), environment.host());
  log::init(context.log_level, who);
  SignalWatch signals(root);
  // Bound before the model loads, so that a port in use costs no loading.
  std::unique_ptr<Coordinator> coordinator;
  on_root(environment, [&] { coordinator = std::make_unique<Coordinator>(options.coordinator); });
  Instance instance(environment, options.instance);
  try {
    if (root)
      serve_root(instance, *coordinator, signals, options);
    else
      instance.worker().run();
  } catch (const std::exception& error) {
    log::error("{}", error.what());
    MpiEnvironment::abort(1);
  }
  return 0;
}

}  // namespace

void add_serve(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<ServeOptions>();
  auto* command =
      app.add_subcommand("serve", "Serve a model over gRPC (run it under mpirun or srun)");
  add_instance_flags(*command, options->instance);
  const std::string group = "Server";
  command->add_option("--listen", options->coordinator.listen, "HOST:PORT; port 0 takes a free one")
      ->group(group)
      ->capture_default_str();
  command
      ->add_option("--port-file", options->coordinator.port_file,
                   "Write the port here once it is known")
      ->group(group);
  command
      ->add_option("--frontend-threads", options->frontend_threads,
                   "Threads that tokenize and detokenize")
      ->group(group)
      ->check(between(1, 256))
      ->capture_default_str();
  command->add_option("--grace", options->grace_s, "Seconds that live requests have at the end")
      ->group(group)
      ->check(between(0, 3600))
      ->capture_default_str();
  command->add_option("--keep", options->keep_s, "Seconds that an ended request can be attached to")
      ->group(group)
      ->check(between(0, 86400))
      ->capture_default_str();
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return serve(context, *options); };
  });
}

}  // namespace trireme
