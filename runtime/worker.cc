#include "runtime/worker.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "parallel/wait.h"
#include "runtime/model/activation_flow.h"
#include "runtime/model/tensor_sums_start.h"
#include "runtime/sampler.h"
#include "runtime/token_return.h"
#include "runtime/worker_messages.h"
#include "runtime/worker_slots.h"

namespace trireme {
namespace {

std::string host_name() {
  char name[256] = "?";
  gethostname(name, sizeof(name) - 1);
  return name;
}

// A logits row that somebody wants, and the result that it belongs to.
struct Wanted {
  int32_t token_index = 0;  // in the step's tokens
  size_t result = 0;
  SampleRow row;
};

// A step that is launched and not finished.
struct LaunchedStep {
  StepResult result;
  uint64_t number = 0;  // of Sampler::queue; 0: the result is whole
  bool told = false;    // the first stage hears its tokens from the device
  // Of the queued rows: which of the result's they are, the sequence's admission to its slot, and
  // the position that they sample for.
  struct Row {
    size_t result = 0;
    uint64_t admission = 0;
    int32_t position = 0;
  };
  std::vector<Row> rows;
};

// How long the host waits for a step on the device.
constexpr std::chrono::seconds kStepLimit{300};

int64_t logit_rows(const WorkerConfig& config, const Backend& backend) {
  return std::min<int64_t>(config.max_tokens, backend.max_logit_rows());
}

}  // namespace

struct Worker::State {
  State(const ModelConfig& model, World& world, Backend& backend, DecoderWeights weights,
        KvCache kv, const WorkerConfig& config);

  void check(const StepPlan& plan) const;
  std::span<const int32_t> known_tokens(const StepPlan& plan);
  void prepare(const StepPlan& plan, LaunchedStep& launch);
  void build_batch(const StepPlan& plan);
  void compute(const StepPlan& plan);
  void want_logits(const StepPlan& plan, StepResult& result);
  void want_prompt(const StepPlan& plan, const PlanRow& row, size_t result);
  void want_sample(const PlanRow& row, size_t result);
  bool queue_sampling(LaunchedStep& step);
  void take_tokens(const StepPlan& plan, LaunchedStep& launch);
  void sample(StepResult& result);
  // What this rank's GPU waits for others through; null if for nobody.
  DeviceCommunicator* device_group() const {
    return world.device_tp ? world.device_tp.get() : world.device_data.get();
  }
  void deliver(const Wanted& wanted, Sampled& sampled, StepResult& result) const;
  void remember(const StepPlan& plan, const StepResult& result);
  void collect(LaunchedStep& step);
  void finish(StepResult& result);
  bool is_done(const LaunchedStep& launch) const;
  void look_after(std::chrono::steady_clock::time_point& looked);
  void finish_oldest(StepResult& result, std::vector<std::byte>& message);
  void attend(StepResult& result, std::vector<std::byte>& message);

  const ModelConfig& model;
  World& world;
  WorkerConfig config;
  KvGroups groups;
  KvCache cache;
  WorkerSlots slots;
  std::unique_ptr<TensorSums> sums;
  Decoder decoder;
  StageEdge edge;
  ActivationFlow flow;
  Backend& backend;
  std::unique_ptr<Sampler> sampler;  // last stage
  std::unique_ptr<TokenReturn> tokens_back;
  uint64_t step = 0;  // for messages
  bool omits_edges = false;
  std::deque<LaunchedStep> launched;  // not finished yet, the oldest first
  std::vector<LaunchedStep> spare;    // for reuse

  // Reused by every step.
  DecoderBatch batch;
  std::vector<AttentionRow> rows;
  std::vector<int32_t> tokens;       // where the plan's leave some open
  std::vector<int32_t> token_slots;  // as StepInputs::token_slots
  std::vector<Wanted> wanted;
  std::vector<int32_t> logit_tokens;
  std::vector<SampleRow> sample_rows;
  std::vector<int32_t> sample_slots;
  std::vector<int32_t> chosen;
  std::vector<Sampled> sampled;
};

Worker::State::State(const ModelConfig& model_config, World& of_world, Backend& backend_of_rank,
                     DecoderWeights weights, KvCache kv, const WorkerConfig& worker_config)
    : model(model_config),
      world(of_world),
      config(worker_config),
      groups(kv_groups(model)),
      cache(std::move(kv)),
      slots(config.slots, groups.windows.size(), config.block_size,
            world.last_stage() ? world.shard().vocab : Part{}),
      sums(make_tensor_sums(*world.tp, world.device_tp.get(), backend_of_rank, model.hidden)),
      decoder(model, world.layout, world.rank, std::move(weights), backend_of_rank, *sums,
              config.max_tokens, logit_rows(config, backend_of_rank)),
      edge(make_stage_edge(world)),
      flow(edge, backend_of_rank, config.max_tokens, model.hidden),
      backend(backend_of_rank) {
  if (world.device_tp) {
    tune_sums(*sums, *world.tp, *world.device_tp, decoder.sum_buffers());
  }
  if (world.last_stage()) {
    sampler = std::make_unique<Sampler>(*world.tp, world.shard().vocab, model.vocab,
                                        backend.make_logit_rows(config.slots));
  }
  TokenReturn::Settings settings;
  settings.look_ahead = config.look_ahead;
  settings.slots = config.slots;
  settings.shares = config.shares;
  settings.vocab = model.vocab;
  if (sampler != nullptr) {
    settings.most_on_device =
        std::min(sampler->most_queued(), static_cast<size_t>(logit_rows(config, backend)));
  }
  tokens_back = std::make_unique<TokenReturn>(world, backend, slots, settings);
  batch.tables.resize(groups.windows.size());
}

void Worker::State::check(const StepPlan& plan) const {
  if (static_cast<int64_t>(plan.tokens.size()) > config.max_tokens) {
    fail(ErrorCode::kInternal, "plan of step {}: {} tokens, at most {} fit", plan.step,
         plan.tokens.size(), config.max_tokens);
  }
  // A token that was sampled is known where it was sampled.
  const int32_t least = config.look_ahead ? kSampled : 0;
  for (const int32_t token : plan.tokens) {
    if (token < least || token >= model.vocab) {
      fail(ErrorCode::kInternal, "plan of step {}: token {} is not below {}", plan.step, token,
           model.vocab);
    }
  }
}

// The plan's tokens, those that it leaves open filled in: here, or by the device.
std::span<const int32_t> Worker::State::known_tokens(const StepPlan& plan) {
  token_slots.clear();
  const auto first = std::find(plan.tokens.begin(), plan.tokens.end(), kSampled);
  if (first == plan.tokens.end()) return plan.tokens;
  tokens = plan.tokens;
  for (const PlanRow& row : plan.rows) {
    const auto at = static_cast<size_t>(row.token_begin);
    if (tokens[at] != kSampled) continue;
    const WorkerSlot& slot = slots[row.slot];
    if (!world.first_stage()) {  // which alone reads tokens
      tokens[at] = kStandIn;
      continue;
    }
    tokens_back->need(row.slot, row.position);
    tokens[at] = slot.newest;
    if (slot.pending != row.position) continue;
    token_slots.resize(tokens.size(), -1);
    token_slots[at] = row.slot;
    tokens[at] = kStandIn;
  }
  return tokens;
}

void Worker::State::build_batch(const StepPlan& plan) {
  rows.clear();
  for (auto& tables : batch.tables) tables.clear();
  for (const PlanRow& row : plan.rows) {
    const WorkerSlot& slot = slots[row.slot];
    rows.push_back({row.token_begin, row.count, row.position, slot.tables[0].data()});
    for (size_t g = 0; g < batch.tables.size(); ++g) {
      batch.tables[g].push_back(slot.tables[g].data());
    }
  }
  batch.tokens = known_tokens(plan);
  batch.token_slots = token_slots;
  batch.rows = rows;
}

void Worker::State::compute(const StepPlan& plan) {
  const auto tokens = static_cast<int64_t>(plan.tokens.size());
  batch.logit_tokens = logit_tokens;
  const SpanScope span(config.spans, SpanKind::kLayers);
  decoder.begin(batch, groups, cache);
  if (!omits_edges) flow.receive(decoder.hidden(tokens));
  decoder.forward();
  if (!omits_edges) flow.send(decoder.hidden(tokens));
}

void Worker::State::want_prompt(const StepPlan& plan, const PlanRow& row, size_t result) {
  const WorkerSlot& slot = slots[row.slot];
  for (int32_t i = 0; i < row.count; ++i) {
    const int32_t at = row.token_begin + i;
    const int32_t target =
        i + 1 < row.count ? plan.tokens[static_cast<size_t>(at) + 1] : row.next_token;
    if (target < 0 || row.position + i + 1 >= slot.prompt_tokens) continue;
    SampleRow score;
    score.target = target;
    score.top = std::max(0, slot.sampling.prompt_logprobs);
    wanted.push_back({at, result, score});
  }
}

void Worker::State::want_sample(const PlanRow& row, size_t result) {
  const WorkerSlot& slot = slots[row.slot];
  SampleRow sample;
  sample.params = &slot.sampling;
  sample.counts = &slot.counts;
  sample.output_index = slot.output_index;
  sample.position = row.position + row.count - slot.prompt_tokens;
  wanted.push_back({row.token_begin + row.count - 1, result, sample});
}

void Worker::State::want_logits(const StepPlan& plan, StepResult& result) {
  wanted.clear();
  logit_tokens.clear();
  result.step = plan.step;
  size_t used = 0;
  for (const PlanRow& row : plan.rows) {
    if (!row.sample && !row.prompt_logprobs) continue;
    if (result.rows.size() == used) result.rows.emplace_back();
    RowResult& out = result.rows[used];
    out.slot = row.slot;
    out.token = -1;
    out.logprob = 0.0f;
    out.top.clear();
    out.prompt.clear();
    out.prompt_top.clear();
    if (row.prompt_logprobs) want_prompt(plan, row, used);
    if (row.sample) want_sample(row, used);
    ++used;
  }
  result.rows.resize(used);
  for (const Wanted& one : wanted) logit_tokens.push_back(one.token_index);
}

void Worker::State::deliver(const Wanted& from, Sampled& drawn, StepResult& result) const {
  RowResult& out = result.rows[from.result];
  if (from.row.params == nullptr) {
    out.prompt.push_back({from.row.target, drawn.logprob});
    out.prompt_top.push_back(std::move(drawn.top));
    return;
  }
  out.token = drawn.token >= 0 ? drawn.token : kNothingLeft;
  out.logprob = drawn.logprob;
  out.top = std::move(drawn.top);
}

// Where one look at the logits decides all rows, the device takes it while the host goes on.
bool Worker::State::queue_sampling(LaunchedStep& launch) {
  if (wanted.size() > static_cast<size_t>(logit_rows(config, backend))) return false;
  sample_rows.clear();
  for (const Wanted& one : wanted) sample_rows.push_back(one.row);
  if (!sampler->can_queue(sample_rows)) return false;
  sample_slots.clear();
  launch.rows.clear();
  for (const Wanted& one : wanted) {
    const SlotId slot = launch.result.rows[one.result].slot;
    const int32_t position = one.row.position + slots[slot].prompt_tokens;
    sample_slots.push_back(slot);
    launch.rows.push_back({one.result, slots[slot].admission, position});
    slots.queued(slot, position);
  }
  StepTimer* timer = backend.step_timer();
  if (timer != nullptr) timer->stamp(DevicePart::kSample);
  launch.number = sampler->queue(decoder.logits(logit_tokens), sample_rows, sample_slots);
  if (timer != nullptr) timer->stamp(DevicePart::kNothing);
  return true;
}

// Samples, or has the device choose.
void Worker::State::take_tokens(const StepPlan& plan, LaunchedStep& launch) {
  const bool queued = queue_sampling(launch);
  launch.told = !omits_edges && tokens_back->on_device(plan);
  if (launch.told) {
    if (!queued) fail(ErrorCode::kInternal, "step {}: tokens are not on the device", plan.step);
    tokens_back->tell_chosen();
  }
  if (queued) return;
  for (LaunchedStep& earlier : launched) collect(earlier);  // penalties count them
  sample(launch.result);
  if (config.look_ahead) remember(plan, launch.result);
}

bool Worker::State::is_done(const LaunchedStep& launch) const {
  return launch.number == 0 || sampler->done(launch.number);
}

// For loops that wait for the device or for others: throws, every millisecond, what went wrong.
void Worker::State::look_after(std::chrono::steady_clock::time_point& looked) {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked < std::chrono::milliseconds(1)) return;
  looked = now;
  backend.check();
  if (DeviceCommunicator* device = device_group()) device->check();
  world.control->check();
}

// Takes what the device has chosen, once it is there.
void Worker::State::collect(LaunchedStep& launch) {
  if (launch.number == 0) return;
  auto looked = std::chrono::steady_clock::now();
  Waiter waiter(kStepLimit, false);
  while (!sampler->done(launch.number)) {
    if (!waiter.pause()) {
      fail(ErrorCode::kDeadlineExceeded, "step {}: the GPU has not finished in {} s",
           launch.result.step, kStepLimit.count());
    }
    look_after(looked);
  }
  sampler->take(launch.number, chosen);
  launch.number = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    RowResult& row = launch.result.rows[launch.rows[i].result];
    row.token = chosen[i] >= 0 ? chosen[i] : kNothingLeft;
    // The slot of a sequence that has ended may have another by now: rank 0 knew the token earlier.
    if (slots[row.slot].admission != launch.rows[i].admission) continue;
    slots.sampled(row.slot, launch.rows[i].position, std::max(chosen[i], kStandIn));
  }
}

void Worker::State::sample(StepResult& result) {
  const SpanScope span(config.spans, SpanKind::kSample);
  const auto most = static_cast<size_t>(logit_rows(config, backend));
  for (size_t begin = 0; begin < wanted.size(); begin += most) {
    const size_t count = std::min(most, wanted.size() - begin);
    const auto part = std::span(wanted).subspan(begin, count);
    sample_rows.clear();
    for (const Wanted& one : part) sample_rows.push_back(one.row);
    const MatrixView logits = decoder.logits(std::span(logit_tokens).subspan(begin, count));
    if (DeviceCommunicator* device = device_group()) device->wait({backend.stream()});
    sampler->sample(logits, sample_rows, sampled);
    for (size_t i = 0; i < count; ++i) deliver(part[i], sampled[i], result);
  }
}

Worker::Worker(const ModelConfig& model, World& world, Backend& backend, DecoderWeights weights,
               KvCache cache, const WorkerConfig& config)
    : state_(std::make_unique<State>(model, world, backend, std::move(weights), std::move(cache),
                                     config)) {}

Worker::~Worker() = default;

// The next plan may name what was sampled before rank 0 has told it.
void Worker::State::remember(const StepPlan& plan, const StepResult& result) {
  size_t at = 0;
  for (const PlanRow& row : plan.rows) {
    if (!row.sample && !row.prompt_logprobs) continue;
    const int32_t token = result.rows[at++].token;
    if (!row.sample) continue;
    slots.sampled(row.slot, row.position + row.count, token == kNothingLeft ? kStandIn : token);
  }
}

void Worker::State::finish(StepResult& result) {
  if (launched.empty()) fail(ErrorCode::kInternal, "worker: no step is launched");
  collect(launched.front());
  std::swap(result, launched.front().result);
  spare.push_back(std::move(launched.front()));
  launched.pop_front();
}

// On a rank other than 0. Results go to rank 0.
void Worker::State::finish_oldest(StepResult& result, std::vector<std::byte>& message) {
  const SpanScope span(config.spans, SpanKind::kResult);
  const bool told = launched.front().told;
  finish(result);
  if (!told) tokens_back->tell(result);
  if (world.last_stage() && !world.first_stage() && world.tensor_rank() == 0) {
    encode(result, message);
    world.control->send(message, 0, kResultTag);
  }
}

// Results leave as soon as they are there, until there is an order: the next step is launched while
// the device is at this one.
void Worker::State::attend(StepResult& result, std::vector<std::byte>& message) {
  Waiter waiter(kStepLimit, false);
  auto looked = std::chrono::steady_clock::now();
  while (!launched.empty()) {
    if (is_done(launched.front())) {
      finish_oldest(result, message);
      waiter = Waiter(kStepLimit, false);
      continue;
    }
    const bool room = launched.size() < LogitChooser::kInFlight;
    if (room && world.control->probe(0, kOrderTag, Wait::kNever) >= 0) return;
    if (!waiter.pause()) {
      fail(ErrorCode::kDeadlineExceeded, "step {}: the GPU has not finished in {} s",
           launched.front().result.step, kStepLimit.count());
    }
    look_after(looked);
  }
}

// What a plan changes here, and what it wants; no other rank is needed for it.
void Worker::State::prepare(const StepPlan& plan, LaunchedStep& launch) {
  const SpanScope span(config.spans, SpanKind::kPrepare);
  step = plan.step;
  check(plan);
  if (!omits_edges) tokens_back->begin(plan.step);
  slots.apply(plan);
  build_batch(plan);
  if (!omits_edges) tokens_back->expect(plan);
  logit_tokens.clear();
  if (!spare.empty()) {
    launch = std::move(spare.back());
    spare.pop_back();
  }
  if (world.last_stage()) want_logits(plan, launch.result);
}

void Worker::launch(const StepPlan& plan) {
  State& state = *state_;
  if (state.config.spans != nullptr) state.config.spans->enter(plan.step);
  LaunchedStep launch;
  state.prepare(plan, launch);
  const bool samples = state.world.last_stage();
  if (!plan.rows.empty()) state.compute(plan);
  if (!samples) return;
  if (!state.wanted.empty()) state.take_tokens(plan, launch);
  state.launched.push_back(std::move(launch));
}

void Worker::finish(StepResult& result) { state_->finish(result); }

void Worker::settle() { state_->tokens_back->settle(); }

void Worker::omit_edges(bool omit) { state_->omits_edges = omit; }
void Worker::replace_cache(KvCache cache) { state_->cache = std::move(cache); }
bool Worker::samples() const { return state_->world.last_stage(); }
Decoder& Worker::decoder() { return state_->decoder; }
const StageEdge& Worker::edge() const { return state_->edge; }
uint64_t Worker::last_step() const { return state_->step; }

void Worker::run() {
  State& state = *state_;
  World& world = state.world;
  StepPlan plan;
  StepResult result;
  std::vector<std::byte> message;
  SpanRecorder* spans = state.config.spans;
  const auto sleep = [&] {
    const SpanScope span(spans, SpanKind::kWait);
    world.doorbell->sleep();
  };
  try {
    if (spans != nullptr) spans->leave();
    sleep();
    while (true) {
      receive(*world.control, 0, kOrderTag, Wait::kForever, message);
      if (message.empty()) fail(ErrorCode::kInternal, "worker: empty message from rank 0");
      const auto order = static_cast<Order>(message.back());
      message.pop_back();
      if (order < Order::kPlan || order > Order::kEnd)
        fail(ErrorCode::kInternal, "worker: no such order from rank 0");
      const bool goes_on = order == Order::kPlan;
      if (goes_on) {
        {
          const SpanScope span(spans, SpanKind::kPrepare);
          decode(std::span<const std::byte>(message), plan);
        }
        launch(plan);
      }
      if (goes_on) {
        state.attend(result, message);
      } else {
        while (!state.launched.empty()) state.finish_oldest(result, message);
        settle();
      }
      if (goes_on && spans != nullptr) spans->leave();
      if (order == Order::kEnd) return;
      if (order == Order::kSleep) sleep();
    }
  } catch (const std::exception& error) {
    abort_world(world, state.step, error.what());
    throw;
  }
}

void abort_world(World& world, uint64_t step, const char* what) {
  const std::string line = fmt::format("rank {} {} tp{} pp{} step {}: {}", world.rank, host_name(),
                                       world.tensor_rank(), world.stage(), step, what);
  log::error("{}", line);
  for (Communicator* group : {static_cast<Communicator*>(world.device_tp.get()),
                              static_cast<Communicator*>(world.device_data.get()), world.tp.get(),
                              world.data.get(), world.control.get()}) {
    try {
      if (group != nullptr) group->abort(line);
    } catch (const std::exception&) {  // already down
    }
  }
}

}  // namespace trireme
