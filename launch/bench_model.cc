#include "launch/bench_model.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct ModelCost {
  double bytes = 0;    // weights read per step
  double weights = 0;  // multiplied per token, head excluded
  double head = 0;     // weights of the head, multiplied per sampled token
};

ModelCost cost_of(const WeightSource& source, const Backend& backend) {
  ModelCost cost;
  const bool untied = source.find("head.weight").has_value();
  for (const auto& tensor : source.tensors()) {
    const double elements = static_cast<double>(tensor.rows) * static_cast<double>(tensor.cols);
    const bool embed = tensor.name == "embed.weight";
    if (embed && untied) continue;
    WeightSlice slice{tensor.format, tensor.rows, tensor.cols, 0, tensor.cols, {}};
    if (tensor.rows > 1) cost.bytes += static_cast<double>(backend.weight_bytes(slice));
    if (embed || tensor.name == "head.weight")
      cost.head = elements;
    else if (tensor.rows > 1)
      cost.weights += elements;
  }
  return cost;
}

// `batch` requests with random prompts; gives the times of the first and last token of all.
struct RunTimes {
  Clock::time_point start, all_started, end;
  int64_t tokens_after_start = 0;  // generated between all_started and end
};

RunTimes run_batch(Frontend& frontend, const Instance& instance, const BenchModelOptions& options,
                   int32_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::unique_ptr<OutputStream>> streams;
  RunTimes times;
  times.start = Clock::now();
  for (int32_t i = 0; i < options.batch; ++i) {
    GenerateParams params;
    for (int32_t t = 0; t < options.prompt; ++t) {
      params.token_ids.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(instance.config().vocab)));
    }
    params.sampling.temperature = 0.0f;
    params.sampling.max_tokens = tokens;
    params.ignore_eos = true;
    streams.push_back(frontend.generate(std::move(params)));
  }
  std::vector<int64_t> counts(streams.size(), 0);
  size_t started = 0, ended = 0;
  while (ended < streams.size()) {
    for (size_t i = 0; i < streams.size(); ++i) {
      if (streams[i]->ended()) continue;
      streams[i]->wait(std::chrono::milliseconds(streams.size() == 1 ? 1000 : 1));
      while (auto delta = streams[i]->poll()) {
        const auto tokens_now = static_cast<int64_t>(delta->token_ids.size());
        if (started == streams.size()) {
          times.tokens_after_start += tokens_now;
        } else if (counts[i] == 0 && tokens_now > 0 && ++started == streams.size()) {
          times.all_started = Clock::now();  // what came with this delta came before
        }
        counts[i] += tokens_now;
        if (delta->finish == FinishReason::kError) fail(ErrorCode::kInternal, "{}", delta->error);
      }
      if (streams[i]->ended()) ++ended;
    }
  }
  times.end = Clock::now();
  return times;
}

}  // namespace

MachineLimits measure_limits(OfflineSession& session) {
  Instance& instance = session.instance();
  const auto layer = instance.source().find("layers.0.q.weight");
  const bool quantized = layer && !is_plain(layer->format);
  Communicator& control = *instance.world().control;
  control.barrier();
  MachineLimits limits = instance.backend().measure_limits(quantized);
  std::array<float, 2> sums = {static_cast<float>(limits.read_bandwidth),
                               static_cast<float>(limits.flops)};
  control.all_reduce_sum(sums);
  limits.read_bandwidth = sums[0];
  limits.flops = sums[1];
  return limits;
}

nlohmann::ordered_json bench_decode(OfflineSession& session, const BenchModelOptions& options,
                                    const MachineLimits& limits) {
  const ModelCost cost = cost_of(session.instance().source(), session.instance().backend());
  std::vector<double> rates;
  session.run([&](Frontend& frontend) {
    int again = 10;
    for (int i = 0; i <= options.repeats; ++i) {
      const auto times = run_batch(frontend, session.instance(), options, options.tokens,
                                   static_cast<uint64_t>(i + 1));
      // On a busy machine a small model may be through before this thread gets a turn.
      if (times.tokens_after_start == 0 && again-- > 0) {
        --i;
        continue;
      }
      if (times.tokens_after_start == 0) {
        fail(ErrorCode::kInvalidArgument, "--tokens: {} come too fast to be timed; ask for more",
             options.tokens);
      }
      const double rate = static_cast<double>(times.tokens_after_start) /
                          seconds_between(times.all_started, times.end);
      if (i > 0) rates.push_back(rate);  // the first run warms up
    }
  });
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
  json["batch"] = options.batch;
  json["context"] = options.prompt;
  json["layout"] = session.instance().world().layout.describe();
  json["backend"] = session.instance().backend().description();
  return json;
}

nlohmann::ordered_json bench_prefill(OfflineSession& session, const BenchModelOptions& options,
                                     const MachineLimits& limits) {
  Instance& instance = session.instance();
  const ModelCost cost = cost_of(instance.source(), instance.backend());
  std::vector<double> times;
  session.run([&](Frontend& frontend) {
    for (int i = 0; i <= options.repeats; ++i) {
      const auto run =
          run_batch(frontend, session.instance(), options, 1, static_cast<uint64_t>(i + 1));
      if (i > 0) times.push_back(seconds_between(run.start, run.end));
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
