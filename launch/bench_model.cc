#include "launch/bench_model.h"

#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "kernels/limits.h"
#include "launch/bench_load.h"
#include "runtime/model/stage_costs.h"
#include "runtime/trace/device_track.h"

namespace trireme {
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct ModelCost {
  double bytes = 0;    // weights read per step; of experts about
  double weights = 0;  // multiplied per token, head excluded
  double head = 0;     // weights of the head, multiplied per sampled token
};

// Of steps of `rows` tokens.
ModelCost cost_of(const WeightSource& source, const Backend& backend, int rows) {
  ModelCost cost;
  const ExpertConfig experts = source.config().experts();
  const bool untied = source.find("head.weight").has_value();
  for (const auto& tensor : source.tensors()) {
    const double elements = static_cast<double>(tensor.rows) * static_cast<double>(tensor.cols);
    const bool embed = tensor.name == "embed.weight";
    if (embed && untied) continue;
    WeightSlice slice{tensor.format, tensor.rows, tensor.cols, 0, tensor.cols, {}};
    const bool expert = tensor.name.find(".experts.") != std::string::npos;
    const double read = expert ? experts_read(experts, rows) / experts.experts : 1;
    const double multiplied =
        expert ? static_cast<double>(experts.experts_per_token) / experts.experts : 1;
    if (tensor.rows > 1) cost.bytes += read * static_cast<double>(backend.weight_bytes(slice));
    if (embed || tensor.name == "head.weight")
      cost.head = elements;
    else if (tensor.rows > 1)
      cost.weights += multiplied * elements;
  }
  return cost;
}

MachineLimits measure_limits(OfflineSession& session) {
  Instance& instance = session.instance();
  const auto layer = instance.source().find("layers.0.q.weight");
  Communicator& control = *instance.world().control;
  control.barrier();
  MachineLimits limits =
      instance.backend().measure_limits(layer ? layer->format : QuantFormat::kF32);
  std::array<float, 2> sums = {static_cast<float>(limits.read_bandwidth),
                               static_cast<float>(limits.flops)};
  control.all_reduce_sum(sums);
  limits.read_bandwidth = sums[0];
  limits.flops = sums[1];
  return limits;
}

// Runs `body` between two measurements, and gives the larger limits. The other ranks have ended
// well and measure once more where rank 0's load has failed: rank 0 does too, and throws then.
MachineLimits run_within_limits(OfflineSession& session,
                                const std::function<void(Frontend&)>& body) {
  MachineLimits limits = measure_limits(session);
  try {
    session.run(body);
  } catch (const Error&) {
    if (!session.is_root()) throw;
    const std::exception_ptr failure = std::current_exception();
    try {
      measure_limits(session);
    } catch (const Error&) {  // the world is broken: that is what the failure is about
    }
    std::rethrow_exception(failure);
  }
  const MachineLimits after = measure_limits(session);
  limits.read_bandwidth = std::max(limits.read_bandwidth, after.read_bandwidth);
  limits.flops = std::max(limits.flops, after.flops);
  return limits;
}

// The share of the read bandwidth that each run reached. A virtual machine's bandwidth may double
// or halve within seconds, so one rank on a CPU measures it between the runs, while nothing else
// uses its threads: a run counts against the mean of what was measured before it and after it.
class BandwidthShares {
 public:
  explicit BandwidthShares(Instance& instance)
      : pool_(instance.pool()),
        between_(instance.world().control->size() == 1 &&
                 !instance.backend().device_memory().has_value()) {}

  void begin() {
    if (between_) before_ = measure_read_bandwidth(pool_);
  }
  void run_ended(double bytes_per_s) {
    if (!between_) return;
    const double after = measure_read_bandwidth(pool_);
    bandwidths_.push_back((before_ + after) / 2);
    shares_.push_back(bytes_per_s / bandwidths_.back());
    before_ = after;
  }
  void report(nlohmann::ordered_json& json) const {
    if (!between_) return;
    json["read_bandwidth"] = median(bandwidths_);
    json["ratio"] = median(shares_);
    json["ratios"] = shares_;
  }

 private:
  ThreadPool& pool_;
  bool between_;
  double before_ = 0;
  std::vector<double> bandwidths_, shares_;
};

// The stamps of this rank's GPU; made and finished on every rank, outside of session.run().
class IdleShare {
 public:
  IdleShare(Instance& instance, const BenchModelOptions& options)
      : instance_(instance), steps_(static_cast<uint64_t>(options.tokens) / 2) {
    if (!options.idle_share) return;
    timer_ = instance.backend().step_timer();
    if (timer_ == nullptr) {
      fail(ErrorCode::kInvalidArgument, "--idle-share: {} has no clock of its own",
           instance.backend().description());
    }
    const auto runs = static_cast<uint64_t>(options.repeats) + 1;
    const auto steps = static_cast<uint64_t>(options.tokens + options.batch + options.prompt);
    timer_->start(static_cast<size_t>(std::min<uint64_t>(1 << 22, 8 * runs * steps)));
  }

  // On rank 0, when a run that counts has ended: its last step is this one.
  void run_ended(uint64_t step) { ends_.push_back(step); }

  void finish() {
    if (timer_ != nullptr) times_ = timer_->stop();
  }
  void report(nlohmann::ordered_json& json) const {
    if (timer_ == nullptr) return;
    double sum = 0;
    for (const uint64_t end : ends_) {
      sum += trireme::idle_share(times_, instance_.worker().last_step(), steps_, end - 1);
    }
    json["gpu_idle_share"] = sum / static_cast<double>(ends_.size());
    json["gpu_idle_steps"] = steps_ * ends_.size();
    json["gpu_clock_resolution_ns"] = times_.resolution;
  }

 private:
  Instance& instance_;
  uint64_t steps_;
  StepTimer* timer_ = nullptr;
  std::vector<uint64_t> ends_;
  DeviceTimes times_;
};

}  // namespace

nlohmann::ordered_json bench_decode(OfflineSession& session, const BenchModelOptions& options) {
  const ModelCost cost =
      cost_of(session.instance().source(), session.instance().backend(), options.batch);
  auto load = even_load(options.batch, options.prompt, options.tokens);
  for (LoadRequest& request : load) {
    request.temperature = options.temperature;
    request.top_k = options.top_k;
    request.top_p = options.top_p;
    request.frequency_penalty = options.frequency_penalty;
  }
  std::vector<double> rates;
  IdleShare idle(session.instance(), options);
  BandwidthShares shares(session.instance());
  const MachineLimits limits = run_within_limits(session, [&](Frontend& frontend) {
    int again = 10;
    for (int i = 0; i <= options.repeats; ++i) {
      if (i == 1) shares.begin();
      const auto times = run_load(frontend, session.instance(), load, static_cast<uint64_t>(i + 1));
      // On a busy machine a small model may be through before this thread gets a turn.
      if (times.tokens_after_start == 0 && again-- > 0) {
        --i;
        continue;
      }
      if (times.tokens_after_start == 0) {
        fail(ErrorCode::kInvalidArgument, "--tokens: {} come too fast to be timed; ask for more",
             options.tokens);
      }
      if (i == 0) continue;  // it warms up
      rates.push_back(times.decode_rate());
      shares.run_ended(cost.bytes * rates.back() / options.batch);
      idle.run_ended(session.instance().engine().stats().scheduler.steps);
    }
  });
  idle.finish();
  if (rates.empty()) return {};
  const double rate = median(rates);
  const double bytes_per_s = cost.bytes * rate / options.batch;
  nlohmann::ordered_json json;
  json["name"] = "decode";
  json["value"] = rate;
  json["unit"] = "tokens/s";
  json["weight_bytes_per_step"] = cost.bytes;
  json["bytes_per_s"] = bytes_per_s;
  json["read_bandwidth"] = limits.read_bandwidth;
  json["ratio"] = bytes_per_s / limits.read_bandwidth;
  shares.report(json);
  json["batch"] = options.batch;
  json["context"] = options.prompt;
  json["layout"] = session.instance().world().layout.describe();
  json["backend"] = session.instance().backend().description();
  idle.report(json);
  return json;
}

nlohmann::ordered_json bench_prefill(OfflineSession& session, const BenchModelOptions& options) {
  Instance& instance = session.instance();
  const ModelCost cost =
      cost_of(instance.source(), instance.backend(), options.batch * options.prompt);
  std::vector<double> times;
  const MachineLimits limits = run_within_limits(session, [&](Frontend& frontend) {
    for (int i = 0; i <= options.repeats; ++i) {
      const auto run = run_load(frontend, instance, even_load(options.batch, options.prompt, 1),
                                static_cast<uint64_t>(i + 1));
      if (i > 0) times.push_back(run.seconds());
    }
  });
  if (times.empty()) return {};
  const double time = median(times);
  const ModelConfig& config = instance.config();
  const double prompt = options.prompt, batch = options.batch;
  const double attention = 2.0 * prompt * prompt * config.q_heads * config.head_dim *
                           static_cast<double>(config.layers.size());
  const double flops = batch * (2.0 * cost.weights * prompt + 2.0 * cost.head + attention);
  nlohmann::ordered_json json;
  json["name"] = "prefill";
  json["value"] = batch * prompt / time;
  json["unit"] = "tokens/s";
  json["flops_per_s"] = flops / time;
  json["flops_limit"] = limits.flops;
  json["flops_limit_of"] = limits.arithmetic;
  json["ratio"] = flops / time / limits.flops;
  json["batch"] = options.batch;
  json["prompt"] = options.prompt;
  json["layout"] = session.instance().world().layout.describe();
  json["backend"] = session.instance().backend().description();
  return json;
}

}  // namespace trireme
