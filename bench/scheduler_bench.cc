// The cost of planning and applying one step, without a model: N decode rows in steady state.
// Sequences end and are replaced by new ones, so blocks churn: the prefix cache is on and the pool
// is full (what nobody references is cached, so every block taken evicts one).
//
// Prints one JSON object a line: {name, value, unit, limit, ratio}; ratio = value / limit.
//   .step       mean, sequences ending and newcomers included: one of 256 rows a step, or as many
//               as the scheduler lets in; beside it, on stderr, how many rows that keeps running
//   .step_p99   the same, 99th percentile
//   .encode     mean of making those plans into messages
//   .decode     mean where nobody comes or ends; blocks still churn
//   .per_row    .decode a row
//   .ahead      as .decode, each row planned before its token is known (look_ahead)
//   .admission  what a newcomer adds (and the end of another), per block of its prompt, measured
//               without a limit on look-ups: it must be looked up, retained and sent once, so this
//               part does grow with the context. Its prompt was hashed when it was submitted.
// Times are CPU times of the one thread, so that a loaded machine does not blur them.
//
//   scheduler_bench [steps per measurement]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "runtime/scheduler.h"

namespace trireme {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int32_t kOutput = 256;  // generated tokens of one sequence
constexpr int32_t kDecodeSteps = 200;

struct Load {
  int32_t rows = 0;
  int32_t context = 0;
  int32_t steps = 0;
  bool limited = true;  // look-ups, as without a setting
  bool ahead = false;   // look_ahead
};

double cpu_microseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

struct Cost {
  double sum = 0;
  double encoding = 0;
  int64_t steps = 0;
  int64_t rows = 0;
  int64_t admissions = 0;
  std::vector<double> times;
  double mean() const { return sum / static_cast<double>(steps); }
  double p99() {
    const auto at = times.begin() + static_cast<int64_t>(times.size()) * 99 / 100;
    std::nth_element(times.begin(), at, times.end());
    return *at;
  }
};

// Contexts grow to about `context`. All prompts of a load begin with one of four shared prefixes
// and end in up to 64 tokens of their own, so newcomers hit, and their prefill fits a step; the
// pool holds what runs and a fifth more.
class Bench {
 public:
  explicit Bench(const Load& load)
      : load_(load), scheduler_(scheduler_config(load), pool_config(load)), random_(1) {
    for (int i = 0; i < 4; ++i) {
      std::vector<int32_t>& prefix = prefixes_.emplace_back(load.context - kOutput - kOwn);
      for (int32_t& token : prefix) token = static_cast<int32_t>(random_() % 50000);
    }
  }

  // Ends are spread evenly over the steps.
  void warm_up() {
    for (int32_t i = 0; i < load_.rows; ++i) add(1 + i % kOutput);
    // Long enough that every block was taken once: from then on each one taken evicts another.
    while (full_steps_ < 2 * kOutput) step();
  }

  void measure_churn() { churn_ = measured(load_.steps); }

  void measure_decode() {
    output_ = kOutput + kDecodeSteps + 20;  // newcomers outlive what follows
    for (int32_t i = 0; i < kOutput + 8; ++i) step();
    decode_ = measured(kDecodeSteps);
    if (decode_.admissions != 0) std::fprintf(stderr, "newcomers among the decode steps\n");
  }

  void report_churn(double limit) {
    const SchedulerStats stats = scheduler_.stats();
    print(name() + ".step", churn_.mean(), "us", limit);
    print(name() + ".step_p99", churn_.p99(), "us", limit);
    print(name() + ".encode", churn_.encoding / static_cast<double>(churn_.steps), "us", 0);
    std::fprintf(stderr,
                 "%s: %.2f newcomers a step, %.0f rows, %d waiting, %ld blocks, %ld used, "
                 "%ld cached, %lu look-ups begun again\n",
                 name().c_str(), static_cast<double>(churn_.admissions) / load_.steps,
                 static_cast<double>(churn_.rows) / load_.steps, stats.waiting, stats.kv.blocks,
                 stats.kv.used, stats.kv.cached, stats.lookups_dropped);
  }

  void report_ahead(double limit) {
    print(name() + ".ahead", decode_.mean(), "us", limit);
    const auto ahead = static_cast<int64_t>(scheduler_.stats().rows_ahead);
    if (ahead < decode_.rows) std::fprintf(stderr, "only %ld rows went ahead\n", ahead);
  }

  void report_decode(double limit) {
    print(name() + ".decode", decode_.mean(), "us", limit);
    print(name() + ".per_row", 1e3 * decode_.mean() / load_.rows, "ns", 1e3 * limit / load_.rows);
    const double prompt_blocks = static_cast<double>((load_.context - kOutput) / kBlockSize);
    const double added = (churn_.mean() - decode_.mean()) * static_cast<double>(churn_.steps);
    print(name() + ".admission",
          1e3 * added / (static_cast<double>(churn_.admissions) * prompt_blocks), "ns/block", 0);
  }

 private:
  static constexpr int32_t kOwn = 64;

  std::string name() const {
    return "scheduler." + std::to_string(load_.rows) + "_rows." +
           std::to_string(load_.context / 1024) + "k_context";
  }

  static SchedulerConfig scheduler_config(const Load& load) {
    SchedulerConfig config;
    config.token_budget = 2 * load.rows + 1024;
    config.max_chunk = 1 << 20;
    config.max_rows = load.rows;
    config.max_running = load.rows;
    config.max_queue = 2 * load.rows;
    config.max_context = load.context + 2 * kOutput;
    if (!load.limited) config.max_lookups = 1 << 30;
    config.look_ahead = load.ahead;
    config.steps_in_flight = load.ahead ? 2 : 1;
    return config;
  }

  static KvPoolConfig pool_config(const Load& load) {
    KvPoolConfig pool;
    pool.block_size = kBlockSize;
    const int64_t shared = 4 * (load.context / kBlockSize + 1);
    const int64_t own = static_cast<int64_t>(load.rows) * ((2 * kOutput + kOwn) / kBlockSize + 2);
    pool.blocks = {static_cast<int32_t>((shared + own) * 6 / 5)};
    return pool;
  }

  void add(int32_t max_tokens) {
    Sequence sequence;
    sequence.id = ++id_;
    sequence.tokens = prefixes_[id_ % prefixes_.size()];
    for (int64_t i = kOwn - random_() % kBlockSize; i > 0; --i) {
      sequence.tokens.push_back(static_cast<int32_t>(random_() % 50000));
    }
    sequence.prompt_tokens = sequence.size();
    sequence.sampling.max_tokens = max_tokens;
    sequence.sampling.stop_ids = {1 << 20, 1 << 21};  // as a model's EOS ids: compared, never met
    scheduler_.prepare({&sequence, 1});
    scheduler_.add(std::move(sequence));
  }

  // The result that the plan will have.
  void execute() {
    StepResult result = std::move(spare_);
    result.step = plan_.step;
    result.rows.clear();
    for (const PlanRow& row : plan_.rows) {
      if (!row.sample) continue;
      RowResult& out = result.rows.emplace_back();
      out.slot = row.slot;
      out.token = static_cast<int32_t>(random_() % 50000);
    }
    flying_.push_back(std::move(result));
  }

  void step() {
    if (load_.ahead && flying_.empty() && scheduler_.next(plan_)) execute();
    const double begin = cpu_microseconds();
    const bool planned = scheduler_.next(plan_);
    double time = cpu_microseconds() - begin;
    if (planned) execute();
    events_.clear();
    const double encoded = cpu_microseconds();
    encode(plan_, message_);
    cost_.encoding += cpu_microseconds() - encoded;
    if (flying_.empty()) return;
    const double applied = cpu_microseconds();
    scheduler_.apply(flying_.front(), events_);
    time += cpu_microseconds() - applied;
    spare_ = std::move(flying_.front());
    flying_.pop_front();
    const bool full = static_cast<int32_t>(plan_.rows.size()) * 10 >= load_.rows * 9;
    // Where look-ups are what limits the rows, there will be no more of them.
    const bool steady = ++steps_ > 2 * kOutput && scheduler_.stats().waiting > 0;
    full_steps_ += full || steady;
    for (const SequenceEvent& event : events_) {
      if (event.finish != FinishReason::kNone) add(output_);
    }
    cost_.sum += time;
    cost_.times.push_back(time);
    cost_.rows += static_cast<int64_t>(plan_.rows.size());
    ++cost_.steps;
    cost_.admissions += static_cast<int64_t>(plan_.admitted.size());
  }

  Cost measured(int32_t steps) {
    cost_ = {};
    for (int32_t i = 0; i < steps; ++i) step();
    return cost_;
  }

  static void print(const std::string& name, double value, const char* unit, double limit) {
    std::printf("{\"name\":\"%s\",\"value\":%.2f,\"unit\":\"%s\"", name.c_str(), value, unit);
    if (limit > 0) {
      std::printf(",\"limit\":%.1f,\"ratio\":%.3f}\n", limit, value / limit);
    } else {
      std::printf(",\"limit\":null,\"ratio\":null}\n");
    }
    std::fflush(stdout);
  }

  Load load_;
  Scheduler scheduler_;
  std::mt19937_64 random_;
  std::vector<std::vector<int32_t>> prefixes_;
  uint64_t id_ = 0;
  StepPlan plan_;
  std::vector<std::byte> message_;
  std::deque<StepResult> flying_;
  StepResult spare_;
  std::vector<SequenceEvent> events_;
  Cost cost_, churn_, decode_;
  int32_t output_ = kOutput;
  int32_t full_steps_ = 0;
  int32_t steps_ = 0;
};

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  const int32_t steps = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1000;
  const int32_t only = argc > 2 ? std::atoi(argv[2]) : 0;  // rows
  for (const int32_t rows : {64, 256, 1024, 4096}) {
    for (const int32_t context : {1024, 8192, 65536}) {
      if (only != 0 && rows != only) continue;
      // 100 us for 256 rows and 1.5 ms for 4,096, in proportion between.
      const double limit = rows <= 256 ? 100.0 : 1500.0 * rows / 4096;
      for (const bool limited : {true, false}) {
        trireme::Bench bench({rows, context, steps, limited});
        bench.warm_up();
        bench.measure_churn();
        if (limited) {
          bench.report_churn(limit);
        } else {
          bench.measure_decode();
          bench.report_decode(limit);
        }
      }
      trireme::Bench ahead({rows, context, steps, false, true});
      ahead.warm_up();
      ahead.measure_decode();
      ahead.report_ahead(limit);
    }
  }
  return 0;
}
