// What a load run tells: JSON for scripts, text for people, an SVG plot.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "clients/load_generator.h"
#include "clients/svg_plot.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

Json in_ms(const Percentiles& p) {
  return {{"p50", 1e3 * p.p50},
          {"p90", 1e3 * p.p90},
          {"p99", 1e3 * p.p99},
          {"mean", 1e3 * p.mean},
          {"max", 1e3 * p.max}};
}

std::string describe(const LengthDistribution& lengths) {
  if (!lengths.values.empty()) return fmt::format("{} listed", lengths.values.size());
  if (lengths.low == lengths.high) return fmt::format("{}", lengths.low);
  return fmt::format("{}-{}", lengths.low, lengths.high);
}

std::string describe_load(const LoadConfig& config) {
  return config.rate > 0 ? fmt::format("Poisson, {:g} requests/s", config.rate)
                         : fmt::format("closed loop, {} at once", config.concurrency);
}

// The share of values up to each, as steps.
Points distribution(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  Points points;
  double share = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    points.emplace_back(values[i], share);
    share = 100.0 * static_cast<double>(i + 1) / static_cast<double>(values.size());
    points.emplace_back(values[i], share);
  }
  return points;
}

// Output tokens per second, in equal spans of the run.
Points throughput(const LoadReport& report) {
  constexpr int kSpans = 60;
  const double span = std::max(report.duration, 1e-9) / kSpans;
  std::vector<double> counts(kSpans, 0.0);
  for (const RequestSample& sample : report.samples) {
    for (const double at : sample.times) {
      counts[std::clamp(static_cast<int>(at / span), 0, kSpans - 1)] += 1.0;
    }
  }
  Points points;
  for (int i = 0; i < kSpans; ++i) points.emplace_back((i + 0.5) * span, counts[i] / span);
  return points;
}

std::vector<double> collect(const LoadReport& report, double (*of)(const RequestSample&)) {
  std::vector<double> values;
  for (const RequestSample& sample : report.samples) {
    if (sample.error.empty()) values.push_back(of(sample));
  }
  return values;
}

}  // namespace

std::string to_json(const LoadReport& report) {
  const LoadConfig& config = report.config;
  Json json;
  json["server"] = config.server;
  json["load"] = config.rate > 0 ? "poisson" : "closed";
  if (config.rate > 0) {
    json["rate"] = config.rate;
  } else {
    json["concurrency"] = config.concurrency;
  }
  json["seed"] = config.seed;
  json["prompt_lengths"] = describe(config.prompt);
  json["output_lengths"] = describe(config.output);
  json["requests"] = report.samples.size();
  json["ok"] = report.ok;
  json["failed"] = report.failed;
  json["errors"] = Json::object();
  for (const auto& [message, count] : report.errors) json["errors"][message] = count;
  json["duration_s"] = report.duration;
  json["client_cpu_s"] = report.client_cpu;
  json["prompt_tokens"] = report.prompt_tokens;
  json["cached_tokens"] = report.cached_tokens;
  json["output_tokens"] = report.output_tokens;
  json["output_tokens_per_s"] = report.output_tokens_per_s;
  json["total_tokens_per_s"] = report.total_tokens_per_s;
  json["requests_per_s"] = report.requests_per_s;
  json["ttft_ms"] = in_ms(report.ttft);
  json["time_per_output_token_ms"] = in_ms(report.time_per_output_token);
  json["inter_token_latency_ms"] = in_ms(report.inter_token_latency);
  json["latency_ms"] = in_ms(report.latency);
  json["kv_waste"] = report.kv_waste;
  json["kv_samples"] = report.kv_samples;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string to_text(const LoadReport& report) {
  const LoadConfig& config = report.config;
  std::string text = fmt::format(
      "{}: prompts of {} tokens, outputs of {}\n{} requests in {:.2f} s, {} failed\n"
      "{:.1f} output tokens/s, {:.1f} with the prompts', {:.2f} requests/s\n"
      "KV slots unused: {:.2f}% ({} samples); the load generator used {:.2f} s of CPU\n"
      "{:24}{:>10}{:>10}{:>10}\n",
      describe_load(config), describe(config.prompt), describe(config.output),
      report.samples.size(), report.duration, report.failed, report.output_tokens_per_s,
      report.total_tokens_per_s, report.requests_per_s, 100.0 * report.kv_waste, report.kv_samples,
      report.client_cpu, "ms", "p50", "p90", "p99");
  const auto row = [&](const char* name, const Percentiles& p) {
    text += fmt::format("{:24}{:>10.2f}{:>10.2f}{:>10.2f}\n", name, 1e3 * p.p50, 1e3 * p.p90,
                        1e3 * p.p99);
  };
  row("time to first token", report.ttft);
  row("time per output token", report.time_per_output_token);
  row("inter-token latency", report.inter_token_latency);
  row("end-to-end latency", report.latency);
  for (const auto& [message, count] : report.errors) {
    text += fmt::format("{} x {}\n", count, message);
  }
  return text;
}

std::string to_svg(const LoadReport& report) {
  std::string svg = svg_begin(
      1140, 340,
      fmt::format(
          "{}; prompts {}, outputs {} tokens; {} requests, {} failed; {:.1f} output tokens/s",
          describe_load(report.config), describe(report.config.prompt),
          describe(report.config.output), report.samples.size(), report.failed,
          report.output_tokens_per_s));
  const auto ttft =
      collect(report, [](const RequestSample& s) { return 1e3 * (s.first - s.sent); });
  const auto latency = collect(report, [](const RequestSample& s) { return s.end - s.sent; });
  svg += draw({"Time to first token", "ms", "% of requests", distribution(ttft), 100.0}, 10, 30);
  svg += draw({"End-to-end latency", "s", "% of requests", distribution(latency), 100.0}, 390, 30);
  svg += draw({"Throughput", "s since the start", "output tokens/s", throughput(report), 0.0}, 770,
              30);
  return svg + svg_end();
}

}  // namespace trireme
