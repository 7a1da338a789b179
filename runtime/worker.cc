#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "runtime/model/tensor_sums_start.h"
#include "runtime/worker_messages.h"
#include "runtime/worker_state.h"

namespace trireme {

namespace {

std::vector<int32_t> ranks_of_stage(const World& world) {
  const Stage& stage = world.layout.stage(world.rank);
  std::vector<int32_t> ranks(static_cast<size_t>(stage.tensor));
  std::iota(ranks.begin(), ranks.end(), stage.first_rank);
  return ranks;
}

}  // namespace

Worker::State::State(const ModelConfig& model_config, World& of_world, Backend& backend_of_rank,
                     DecoderWeights weights, KvCache kv, const WorkerConfig& worker_config)
    : model(model_config),
      world(of_world),
      config(worker_config),
      groups(kv_groups(model)),
      cache(std::move(kv)),
      slots(config.slots, groups.windows.size(), config.block_size,
            world.last_stage() ? world.shard().vocab : Part{}),
      sums(make_tensor_sums(*world.tp, world.device_tp.get(), backend_of_rank, model.hidden,
                            world.ledger.get(), ranks_of_stage(world))),
      decoder(model, world.layout, world.rank, std::move(weights), backend_of_rank, *sums,
              config.max_tokens, logit_rows(config, backend_of_rank)),
      edge(make_stage_edge(world)),
      flow(edge, backend_of_rank, config.max_tokens, model.hidden),
      backend(backend_of_rank),
      last_plan(plan_seed(world.layout.describe())) {
  if (world.device_tp) {
    decoder.set_ledger(world.ledger.get());
    tune_sums(*sums, *world.tp, *world.device_tp, decoder.sum_buffers());
  }
  if (device_group() == nullptr && world.layout.pipeline() > 1) {
    // Where the next stage cannot fetch them, the last step's activations leave only while this
    // rank is inside MPI: in a pipeline that looks ahead it goes on to compute at once.
    decoder.set_interlude([this] { world.data->check(); });
  }
  if (world.last_stage()) {
    sampler = std::make_unique<Sampler>(*world.tp, world.shard().vocab, model.vocab,
                                        backend.make_logit_rows(config.slots));
  }
  TokenReturn::Settings settings;
  settings.look_ahead = config.look_ahead;
  settings.slots = config.slots;
  settings.shares = config.shares;
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

Worker::Worker(const ModelConfig& model, World& world, Backend& backend, DecoderWeights weights,
               KvCache cache, const WorkerConfig& config)
    : state_(std::make_unique<State>(model, world, backend, std::move(weights), std::move(cache),
                                     config)) {}

Worker::~Worker() = default;

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

}  // namespace trireme
