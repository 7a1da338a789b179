#include "launch/bench_stage.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>

#include "base/error.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t kPasses = 3;  // that decode: alone, together, without reductions
constexpr int32_t kWarmUp = 4;  // a GPU records a step at its second time

// The plans of `rows` sequences side by side, without a scheduler: each has blocks of its own.
class StagePlans {
 public:
  StagePlans(const Instance& instance, int32_t rows, int32_t last_position)
      : rows_(rows),
        block_size_(instance.pool_config().block_size),
        groups_(instance.pool_config().groups.size()),
        vocab_(instance.config().vocab) {
    blocks_each_ = last_position / block_size_ + 1;
    if (rows > slot_count(instance.scheduler_config())) {
      fail(ErrorCode::kInvalidArgument, "bench: {} sequences, but there are {} slots", rows,
           slot_count(instance.scheduler_config()));
    }
    for (const int32_t blocks : instance.pool_config().blocks) {
      if (int64_t{rows} * blocks_each_ <= blocks) continue;
      fail(ErrorCode::kInvalidArgument,
           "bench: {} sequences of {} tokens take {} KV blocks, but there are {}", rows,
           last_position + 1, int64_t{rows} * blocks_each_, blocks);
    }
  }

  // The next `count` tokens of one sequence, its first ones admit it.
  void prompt(StepPlan& plan, int32_t row, int32_t position, int32_t count) {
    begin(plan);
    if (position == 0) {
      SlotInit& init = plan.admitted.emplace_back();
      init.slot = row;
      init.sampling.temperature = 0.0f;
      init.blocks.resize(groups_);
    }
    add_row(plan, row, position, count, false);
  }
  // One token of each.
  void decode(StepPlan& plan, int32_t position) {
    begin(plan);
    for (int32_t row = 0; row < rows_; ++row) add_row(plan, row, position, 1, true);
  }

 private:
  void begin(StepPlan& plan) {
    plan.clear();
    plan.epoch = uint64_t{1} << 62;  // none that an engine counts to
    plan.step = ++step_;
  }
  void add_row(StepPlan& plan, int32_t slot, int32_t position, int32_t count, bool sample) {
    PlanRow& row = plan.rows.emplace_back();
    row.slot = slot;
    row.position = position;
    row.count = count;
    row.sample = sample;
    row.token_begin = static_cast<int32_t>(plan.tokens.size());
    for (int32_t i = 0; i < count; ++i) {
      plan.tokens.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_)));
    }
    const int32_t held = (position + block_size_ - 1) / block_size_;
    row.block_count = (position + count + block_size_ - 1) / block_size_ - held;
    row.block_begin = static_cast<int32_t>(plan.blocks.size());
    for (size_t g = 0; g < groups_; ++g) {
      for (int32_t i = 0; i < row.block_count; ++i) {
        plan.blocks.push_back(slot * blocks_each_ + held + i);
      }
    }
  }

  int32_t rows_, block_size_;
  size_t groups_;
  int32_t vocab_;
  int32_t blocks_each_ = 0;
  uint64_t step_ = uint64_t{1} << 62;  // in no trace's window
  std::mt19937_64 random_{1};          // the same on all ranks
};

class StageBench {
 public:
  StageBench(Instance& instance, int32_t rows, int32_t context, int32_t steps)
      : instance_(instance),
        world_(instance.world()),
        plans_(instance, rows, context + stage_bench_positions(steps)),
        rows_(rows),
        steps_(steps),
        position_(context) {}

  void fill() {
    const int32_t chunk = instance_.scheduler_config().max_chunk;
    for (int32_t row = 0; row < rows_; ++row) {
      for (int32_t at = 0; at < position_; at += chunk) {
        plans_.prompt(plan_, row, at, std::min(chunk, position_ - at));
        step();
      }
    }
    instance_.backend().synchronize();
  }

  // Seconds of this rank's steps (0 where the turn is not its stage's).
  double alone() {
    double mine = 0;
    instance_.worker().omit_edges(true);
    for (int stage = 0; stage < world_.layout.pipeline(); ++stage) {
      world_.control->barrier();
      if (stage == world_.stage()) mine = time_steps();
    }
    return mine;
  }
  double together() {
    instance_.worker().omit_edges(true);
    world_.control->barrier();
    return time_steps();
  }
  double without_reductions() {
    instance_.worker().decoder().omit_sums(true);
    const double mine = together();
    instance_.worker().decoder().omit_sums(false);
    return mine;
  }
  // A step's sums with the norms that belong to them, over these norms alone.
  double reductions() {
    Decoder& decoder = instance_.worker().decoder();
    double times[2] = {};
    for (const bool omit : {false, true}) {
      decoder.omit_sums(omit);
      world_.control->barrier();
      times[omit ? 1 : 0] = time([&] { decoder.sum_only(rows_); });
    }
    decoder.omit_sums(false);
    return times[0] - times[1];
  }

  // The slowest rank's of each stage.
  std::vector<double> gather(double mine) {
    std::vector<double> all(static_cast<size_t>(world_.control->size()));
    world_.control->all_gather(std::as_bytes(std::span(&mine, 1)),
                               std::as_writable_bytes(std::span(all)));
    std::vector<double> stages(static_cast<size_t>(world_.layout.pipeline()));
    for (size_t rank = 0; rank < all.size(); ++rank) {
      double& stage = stages[static_cast<size_t>(world_.layout.stage_of(static_cast<int>(rank)))];
      stage = std::max(stage, all[rank]);
    }
    return stages;
  }

 private:
  void step() {
    instance_.worker().launch(plan_);
    if (world_.last_stage()) instance_.worker().finish(result_);
  }
  double time_steps() {
    return time([&] {
      plans_.decode(plan_, position_++);
      step();
    });
  }
  // The median of single steps, each ended before the next begins: a stage that waits for nobody.
  double time(const std::function<void()>& work) {
    std::vector<double> times;
    for (int32_t i = 0; i < kWarmUp + steps_; ++i) {
      const auto begin = Clock::now();
      work();
      instance_.backend().synchronize();
      if (i >= kWarmUp) {
        times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      }
    }
    std::nth_element(times.begin(), times.begin() + steps_ / 2, times.end());
    return times[static_cast<size_t>(steps_ / 2)];
  }

  Instance& instance_;
  World& world_;
  StagePlans plans_;
  int32_t rows_, steps_;
  int32_t position_;
  StepPlan plan_;
  StepResult result_;
};

}  // namespace

int32_t stage_bench_positions(int32_t steps) { return kPasses * (kWarmUp + steps); }

std::vector<StageTimes> measure_stages(OfflineSession& session, int32_t rows, int32_t context,
                                       int32_t steps) {
  StageBench bench(session.instance(), rows, context, steps);
  bench.fill();
  const std::vector<double> alone = bench.gather(bench.alone());
  const std::vector<double> together = bench.gather(bench.together());
  std::vector<StageTimes> times(alone.size());
  std::vector<double> muted = together, reductions(alone.size(), 0.0);
  if (session.instance().world().layout.world() > static_cast<int>(alone.size())) {
    muted = bench.gather(bench.without_reductions());
    reductions = bench.gather(bench.reductions());
  }
  session.instance().worker().omit_edges(false);
  for (size_t i = 0; i < times.size(); ++i) {
    times[i] = {alone[i], together[i], muted[i], reductions[i]};
  }
  return times;
}

}  // namespace trireme
