#include "runtime/instance.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/numa.h"
#include "kernels/cuda_module.h"
#include "runtime/instance_dtypes.h"
#include "runtime/instance_layout.h"
#include "runtime/instance_needs.h"
#include "runtime/instance_phase.h"
#include "runtime/instance_tokenizer.h"
#include "runtime/memory.h"
#include "runtime/model/stage_costs.h"
#include "runtime/profiles.h"
#include "runtime/warm_up.h"

namespace trireme {
namespace {

constexpr std::chrono::milliseconds kCommunicatorLimit{300'000};  // as they are made
// What a recorder holds at most: 160 MB of spans, and 100 MB of rows.
constexpr uint64_t kMostSpans = uint64_t{4} << 20;
constexpr uint64_t kMostRows = uint64_t{2} << 20;

int32_t default_threads(int local_size) {
  const CoreLimits limits = core_limits();
  return std::max(1, limits.bound ? limits.cores : limits.cores / std::max(1, local_size));
}

// Whether a step is launched before the tokens that it goes on from are known to rank 0. One stage
// on a CPU gains nothing: its one thread does all of it.
bool looks_ahead(const InstanceOptions& options, int pipeline, bool gpu) {
  if (options.look_ahead == "off") return false;
  if (options.look_ahead == "auto") {
    return (gpu || pipeline > 1) && options.steps_in_flight == 0;
  }
  if (options.look_ahead != "on") {
    fail(ErrorCode::kInvalidArgument, "look_ahead: '{}' is not auto, on or off",
         options.look_ahead);
  }
  return true;
}

SchedulerConfig scheduler_config_of(const InstanceOptions& options, int pipeline, bool gpu) {
  SchedulerConfig config = profile(options.profile, gpu);
  const auto override_with = [](int32_t& limit, int32_t value) {
    if (value > 0) limit = value;
  };
  override_with(config.token_budget, options.token_budget);
  override_with(config.max_chunk, options.max_chunk);
  override_with(config.max_rows, options.max_rows);
  override_with(config.max_running, options.max_running);
  override_with(config.max_queue, options.max_queue);
  config.max_chunk = std::min(config.max_chunk, config.token_budget);
  config.look_ahead = looks_ahead(options, pipeline, gpu);
  const int steps = pipeline + (config.look_ahead ? 1 : 0);
  config.steps_in_flight = options.steps_in_flight > 0 ? options.steps_in_flight : steps;
  return config;
}

// Before memory is known: an explicit figure, or what the model was made for.
int32_t context_wish(const InstanceOptions& options, const ModelConfig& config) {
  if (options.max_context > config.max_context) {
    fail(ErrorCode::kInvalidArgument, "max_context: {} is more than the model's {}",
         options.max_context, config.max_context);
  }
  return options.max_context > 0 ? options.max_context : config.max_context;
}

}  // namespace

struct Instance::State {
  State(std::unique_ptr<Communicator> world_control, int rank_on_host, int ranks_on_host,
        int of_node, const InstanceOptions& instance_options)
      : control(std::move(world_control)),
        local_rank(rank_on_host),
        local_size(ranks_on_host),
        node(of_node),
        options(instance_options) {}

  bool decide_gpu();
  void compare_instruction_sets();
  void make_pool(int threads);
  void tell_why_not(const std::vector<uint8_t>& has, int mine) const;
  void open();
  void start_recording();
  void watch();
  void plan_memory();
  void limit_context();
  KvCache make_cache(const std::vector<int32_t>& blocks);
  void measure_memory();
  void load();
  void report() const;
  ModelShape shape_of_model() const;
  DecoderWeights load_with_progress();

  std::unique_ptr<Communicator> control;  // until `world` takes it
  int local_rank;                         // -1: no GPU is ever used
  bool own_process = false;               // of this rank alone: a watchdog may end it
  std::function<void(World&)> connected;
  int gpu_index = 0;
  int local_size;
  int node;
  bool gpu = false;
  InstanceOptions options;
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Tokenizer> tokenizer;
  ParallelLayout layout;
  std::unique_ptr<SpanRecorder> spans;  // outlives the communicators that it records
  World world;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Backend> backend;
  SchedulerConfig scheduler;
  KvGroups groups;
  KvPoolConfig kv_pool;
  DType kv_dtype = DType::kF32;
  int64_t weight_size = 0;
  int64_t scratch_size = 0;
  int64_t kv_size = 0;
  int64_t scratch_taken = 0;  // of a GPU's memory, before the largest steps
  MemoryNeeds needs;
  std::unique_ptr<RequestLog> requests;
  std::unique_ptr<Worker> worker;
  std::unique_ptr<Engine> engine;
};

// The same answer on all ranks: cuda if it is asked for, or if every rank has a GPU of its own.
bool Instance::State::decide_gpu() {
  if (options.device == "cpu") return false;
  if (options.device != "cuda" && options.device != "auto") {
    fail(ErrorCode::kInvalidArgument, "device: '{}' is not auto, cpu or cuda", options.device);
  }
  if (local_rank < 0) {
    if (options.device == "auto") return false;
    fail(ErrorCode::kInvalidArgument, "device: this world of threads has no GPUs");
  }
  return true;
}

// Where `auto` takes the CPU on a machine that has GPUs, which nobody may have meant. `has` by
// rank.
void Instance::State::tell_why_not(const std::vector<uint8_t>& has, int mine) const {
  const auto without = std::count(has.begin(), has.end(), 0);
  if (control->rank() != 0 || options.device != "auto") return;
  if (mine > 0 || without < static_cast<std::ptrdiff_t>(has.size())) {
    log::warn("device: the CPU, since {} of {} ranks have no GPU of their own ({} on this host)",
              without, has.size(), mine);
  } else {
    log::info("device: the CPU ({})", cuda_unavailable());
  }
}

// Ranks that round differently still serve, but answers then depend on who computes what, and of a
// mixture of experts tensor ranks could choose different ones.
void Instance::State::compare_instruction_sets() {
  const auto mine = static_cast<uint8_t>(options.isa ? *options.isa : best_cpu_isa());
  std::vector<uint8_t> all(static_cast<size_t>(control->size()));
  control->all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  const auto other = std::find_if(all.begin(), all.end(), [&](uint8_t one) { return one != mine; });
  if (other == all.end() || control->rank() != 0) return;
  log::warn("ranks multiply with different instruction sets ({}, rank {} {}); name one by --isa",
            to_string(static_cast<CpuIsa>(mine)), other - all.begin(),
            to_string(static_cast<CpuIsa>(*other)));
}

// Threads stay on memory nodes in their order, those of a rank after those of the one before it.
// Where the launcher bound this rank, what it left is this rank's alone.
void Instance::State::make_pool(int threads) {
  const auto nodes = numa_nodes();
  const bool shared = local_size > 1 && !core_limits().bound;
  const int index = local_rank >= 0 ? local_rank : control->rank();
  auto places = shared ? thread_places(nodes, threads, index * threads, local_size * threads)
                       : thread_places(nodes, threads, 0, threads);
  if (!places.empty() && control->rank() == 0) {
    log::info("compute threads keep to the {} memory nodes in turn", nodes.size());
  }
  pool = std::make_unique<ThreadPool>(threads, std::move(places));
}

// Everything that can be wrong without touching a weight.
void Instance::State::open() {
  const int rank = control->rank();
  ModelShape shape;
  bool wanted = false;
  together(*control, [&] { wanted = decide_gpu(); });
  if (wanted) {
    const int mine = cuda_device_count();
    // Launchers that give each rank a GPU of its own let it see just that one.
    const bool bound = mine == 1 && std::getenv("CUDA_VISIBLE_DEVICES") != nullptr;
    gpu_index = bound ? 0 : local_rank;
    const uint8_t has = gpu_index < mine ? 1 : 0;
    std::vector<uint8_t> all(static_cast<size_t>(control->size()));
    control->all_gather(std::as_bytes(std::span(&has, 1)), std::as_writable_bytes(std::span(all)));
    gpu = std::all_of(all.begin(), all.end(), [](uint8_t one) { return one != 0; });
    if (!gpu) tell_why_not(all, mine);
    together(*control, [&] {
      if (has != 0 || options.device == "auto") return;
      if (mine == 0) fail(ErrorCode::kUnavailable, "device: no GPU ({})", cuda_unavailable());
      fail(ErrorCode::kInvalidArgument,
           "device: rank {} is number {} of its host, which has {} GPU{}: each rank needs its own",
           rank, local_rank + 1, mine, mine == 1 ? "" : "s");
    });
  }
  together(*control, [&] {
    source = open_model(options.model, options.load_format, options.max_context);
    const int threads = options.threads > 0 ? options.threads : default_threads(local_size);
    if (options.threads < 0 || options.threads > 1024) {
      fail(ErrorCode::kInvalidArgument, "threads: {} is not in [0, 1024]", options.threads);
    }
    make_pool(threads);
    const DType element = element_of(options, *source, gpu);
    backend = gpu ? make_cuda_backend(*pool, gpu_index, element)
                  : make_cpu_backend(*pool, options.isa ? *options.isa : best_cpu_isa());
    shape = shape_of_model();
  });
  if (!gpu) compare_instruction_sets();
  const Topology topology =
      find_topology(*control, node, gpu && control->size() > 1 ? gpu_index : -1);
  layout = agree_on_layout(*control, options.layout, shape, topology);
  together(*control, [&] {
    scheduler = scheduler_config_of(options, layout.pipeline(), gpu);
    scheduler.max_context = context_wish(options, source->config());
    validate(scheduler);
    if (options.block_size == 0) options.block_size = gpu ? 32 : 16;
    if (options.block_size < 1 || options.block_size > 1024) {
      fail(ErrorCode::kInvalidArgument, "block_size: {} is not in [1, 1024]", options.block_size);
    }
    kv_dtype = kv_dtype_of(options, *source, *backend, gpu);
    if (rank == 0) tokenizer = open_tokenizer(options.model, source->config().vocab);
    const ModelConfig& config = source->config();
    const KvShape kv{kv_dtype, config.head_dim, config.q_heads / config.kv_heads,
                     options.block_size};
    if (!backend->supports_kv(kv)) {
      fail(ErrorCode::kUnimplemented,
           "kv_dtype: {} with head_dim {}, {} query heads per KV head and blocks of {} tokens is "
           "not "
           "supported by {}",
           to_string(kv.dtype), kv.head_dim, kv.group, kv.block_size, backend->description());
    }
  });
  world = make_world(std::move(control), layout);
  start_recording();
  if (gpu) connect_devices(world, gpu_index);
  if (connected) connected(world);
  if (own_process) watch();
  if (rank == 0) {
    const ModelConfig& config = source->config();
    log::info("model {} ({}): {} layers, hidden {}, {} heads, {} KV heads, vocabulary {}",
              config.name.empty() ? options.model : config.name, config.architecture,
              config.layers.size(), config.hidden, config.q_heads, config.kv_heads, config.vocab);
    log::info("layout {}{}; {}", world.layout.describe(), options.layout.empty() ? " (chosen)" : "",
              topology.describe());
    if (world.layout.pipeline() > 1) {
      log::info("stages take {:.2f} of the slowest one's time, by the cost model",
                fmt::join(stage_shares(world.layout, shape), " : "));
    }
    if (!tokenizer) log::warn("{}: no tokenizer, token ids only", options.model);
  }
}

// With what its parts cost on this rank's backend; equal on all ranks.
ModelShape Instance::State::shape_of_model() const {
  ModelShape shape = model_shape(*source, backend->width_multiple());
  shape.costs = stage_costs(*source, *backend);
  return shape;
}

// Loading has no steps: until the first one only ranks that are lost or silent are noticed.
void Instance::State::watch() {
  WatchdogOptions watch_options;
  const auto limit = std::chrono::duration<double>(options.step_timeout_s);
  watch_options.step_limit = std::chrono::ceil<std::chrono::milliseconds>(limit);
  if (watch_options.step_limit.count() > 0) {
    watch_options.silence_limit = std::min(watch_options.silence_limit, watch_options.step_limit);
    // The watchdog speaks first, since it knows more.
    const auto deadline = watch_options.step_limit * 4 + std::chrono::seconds(10);
    if (deadline > kCommunicatorLimit) set_deadlines(world, deadline);
  }
  watch_options.print = [](const std::string& line) {
    const std::string text = "trireme: " + line + "\n";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
  };
  watch_options.end = [](int code) { std::_Exit(code); };
  start_watchdog(world, std::move(watch_options));
}

void Instance::State::start_recording() {
  if (options.record.count == 0) return;
  // A layer has two reductions; what else a step has is less than this.
  const uint64_t of_step = 64 + 4 * source->config().layers.size();
  const uint64_t steps = std::min(options.record.count, kMostSpans);
  spans = std::make_unique<SpanRecorder>(options.record, std::min(steps * of_step, kMostSpans));
  record_spans(world, *spans);
  if (world.rank != 0) return;
  const uint64_t rows = steps * static_cast<uint64_t>(scheduler.max_rows);
  requests = std::make_unique<RequestLog>(options.record, std::min(rows, kMostRows));
}

void Instance::State::plan_memory() {
  together(*world.control, [&] {
    groups = kv_groups(source->config());
    const ServedModel model{*source,  *backend,           scheduler,           groups,
                            kv_dtype, options.block_size, options.max_context, options.kv_memory};
    needs = memory_needs(model, world.layout, world.rank);
    needs.device = backend->device_memory();
    if (!needs.device) return;
    needs.advice = [this, model, room = room_on_device(*needs.device, false)] {
      return fitting_layout(model, shape_of_model(), world.layout, room);
    };
  });
  kv_pool.block_size = options.block_size;
  kv_pool.prefix_cache = options.prefix_cache;
  kv_pool.groups.clear();
  for (const int window : groups.windows) kv_pool.groups.push_back(KvSpec{window});
  kv_pool.blocks = agree_on_kv_blocks(*world.control, needs);
  weight_size = needs.weights;
  scratch_size = needs.scratch;
}

// A context is no longer than what the KV cache holds.
void Instance::State::limit_context() {
  for (size_t g = 0; g < groups.windows.size(); ++g) {
    if (groups.windows[g] != 0) continue;
    const int64_t tokens = int64_t{kv_pool.blocks[g]} * options.block_size;
    scheduler.max_context = static_cast<int32_t>(std::min<int64_t>(scheduler.max_context, tokens));
  }
}

KvCache Instance::State::make_cache(const std::vector<int32_t>& blocks) {
  return {source->config(),
          groups,
          world.layout.stage(world.rank).layers,
          static_cast<int>(world.shard().kv_heads.count),
          kv_dtype,
          options.block_size,
          blocks,
          *backend};
}

// The largest steps run with a KV cache of a block; what is free then is the KV cache's.
void Instance::State::measure_memory() {
  const WarmUpSizes sizes = warm_up_sizes(scheduler, kv_pool, source->config().vocab);
  const int64_t before = backend->device_memory()->free + scratch_taken;
  warm_up_largest(*worker, *backend, sizes);
  needs.device = backend->device_memory();
  needs.measured = true;
  needs.weights = needs.scratch = 0;
  scratch_size = before - needs.device->free;
  kv_pool.blocks = agree_on_kv_blocks(*world.control, needs);
  backend->forget_recorded();
  std::optional<KvCache> cache;
  together(*world.control, [&] { cache.emplace(make_cache(kv_pool.blocks)); });
  kv_size = cache->bytes();
  worker->replace_cache(std::move(*cache));
  warm_up_all_sizes(*worker, *backend, sizes);
  tune_prefill_parts(*worker, *backend, sizes, *world.tp);
}

DecoderWeights Instance::State::load_with_progress() {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  auto next = begin + std::chrono::seconds(1);
  const bool tells = world.rank == 0;
  DecoderWeights weights =
      load_weights(*source, world.layout, world.rank, *backend, [&](int64_t done, int64_t total) {
        if (!tells || Clock::now() < next) return;
        next = Clock::now() + std::chrono::seconds(1);
        const std::chrono::duration<double> since = Clock::now() - begin;
        log::info("loading weights: {}%, {:.2f} GB/s", done * 100 / std::max<int64_t>(1, total),
                  static_cast<double>(done) / 1e9 / since.count());
      });
  backend->synchronize();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  if (tells) {
    log::info("weights loaded: {} in {:.1f} s, {:.2f} GB/s", format_bytes(weights.bytes()), seconds,
              static_cast<double>(weights.bytes()) / 1e9 / std::max(seconds, 1e-9));
  }
  return weights;
}

void Instance::State::load() {
  const ModelConfig& config = source->config();
  DecoderWeights weights;
  std::optional<KvCache> cache;
  together(*world.control, [&] {
    weights = load_with_progress();
    const std::vector<int32_t> one(kv_pool.blocks.size(), 1);
    cache.emplace(make_cache(gpu ? one : kv_pool.blocks));
  });
  const int64_t free = gpu ? backend->device_memory()->free : 0;
  weight_size = weights.bytes();
  kv_size = cache->bytes();
  WorkerConfig worker_config;
  worker_config.slots = slot_count(scheduler);
  worker_config.max_tokens = scheduler.token_budget;
  worker_config.block_size = options.block_size;
  worker_config.look_ahead = scheduler.look_ahead;
  worker_config.shares = work_shares(scheduler);
  worker_config.spans = spans.get();
  try {
    worker = std::make_unique<Worker>(config, world, *backend, std::move(weights),
                                      std::move(*cache), worker_config);
    if (gpu) {
      scratch_taken = free - backend->device_memory()->free;
      measure_memory();
    }
  } catch (const std::exception& error) {  // the other ranks may be waiting for this one
    abort_world(world, 0, error);
    throw;
  }
  limit_context();
  together(*world.control, [&] {
    if (world.rank != 0) return;
    const EngineRecord record{spans.get(), requests.get()};
    engine = std::make_unique<Engine>(world, *worker, scheduler, kv_pool, record);
  });
}

void Instance::State::report() const {
  if (world.rank != 0 && !gpu) return;
  int64_t tokens = INT64_MAX;
  for (size_t g = 0; g < kv_pool.blocks.size(); ++g) {
    if (groups.windows[g] == 0) {
      tokens = std::min(tokens, int64_t{kv_pool.blocks[g]} * kv_pool.block_size);
    }
  }
  log::info("backend {}; weights {}, workspace {} and KV cache {} ({}) on rank {}",
            backend->description(), format_bytes(weight_size), format_bytes(scratch_size),
            format_bytes(kv_size), to_string(kv_dtype), world.rank);
  if (tokens != INT64_MAX) log::info("KV capacity {} tokens", tokens);
  if (world.rank != 0) return;
  log::info("profile {}: budget {} tokens a step, {} sequences, context {}, {} steps in flight{}",
            options.profile, scheduler.token_budget, slot_count(scheduler), scheduler.max_context,
            scheduler.steps_in_flight, scheduler.look_ahead ? ", looking ahead" : "");
}

Instance::Instance(const MpiEnvironment& environment, const InstanceOptions& options,
                   std::function<void(World&)> connected)
    : state_(std::make_unique<State>(environment.make_control(), environment.local_rank(),
                                     environment.local_size(), environment.node(), options)) {
  state_->own_process = true;
  state_->connected = std::move(connected);
  bring_up();
}

Instance::Instance(std::unique_ptr<Communicator> control, const InstanceOptions& options) {
  const int ranks = control->size();
  state_ = std::make_unique<State>(std::move(control), -1, ranks, 0, options);
  bring_up();
}

void Instance::bring_up() {
  state_->open();
  state_->plan_memory();
  state_->load();
  state_->report();
  state_->pool->release_caller();  // a server's threads come from it
}

Instance::~Instance() = default;

World& Instance::world() { return state_->world; }
const WeightSource& Instance::source() const { return *state_->source; }
const ModelConfig& Instance::config() const { return state_->source->config(); }
const Tokenizer* Instance::tokenizer() const { return state_->tokenizer.get(); }
const SchedulerConfig& Instance::scheduler_config() const { return state_->scheduler; }
const KvPoolConfig& Instance::pool_config() const { return state_->kv_pool; }
Backend& Instance::backend() { return *state_->backend; }
ThreadPool& Instance::pool() { return *state_->pool; }
Worker& Instance::worker() { return *state_->worker; }
Engine& Instance::engine() {
  if (!state_->engine) fail(ErrorCode::kInternal, "the engine is on rank 0 only");
  return *state_->engine;
}
const SpanRecorder* Instance::spans() const { return state_->spans.get(); }
const RequestLog* Instance::requests() const { return state_->requests.get(); }
int64_t Instance::weight_bytes() const { return state_->weight_size; }
int64_t Instance::kv_bytes() const { return state_->kv_size; }

}  // namespace trireme
