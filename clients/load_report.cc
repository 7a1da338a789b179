// What a load run tells: JSON for scripts, text for people, an SVG plot.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "clients/load_generator.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;
using Points = std::vector<std::pair<double, double>>;

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

// 1, 2 or 5 times a power of ten, so that about five steps cover `range`.
double tick_step(double range) {
  const double rough = std::max(range, 1e-12) / 5.0;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10.0 * power;
}

struct Panel {
  std::string title, x_label, y_label;
  Points points;
  double y_max = 0.0;  // 0: by the points
};

// One panel of 360 x 300, its corner at (left, top).
std::string draw(const Panel& panel, double left, double top) {
  constexpr double kWidth = 300.0, kHeight = 210.0, kX = 50.0, kY = 36.0;
  double x_max = 0.0, y_max = panel.y_max;
  for (const auto& [x, y] : panel.points) {
    x_max = std::max(x_max, x);
    if (panel.y_max == 0.0) y_max = std::max(y_max, y);
  }
  if (x_max <= 0) x_max = 1.0;
  if (y_max <= 0) y_max = 1.0;
  const double x_step = tick_step(x_max), y_step = tick_step(y_max);
  x_max = std::ceil(x_max / x_step - 1e-9) * x_step;
  y_max = std::ceil(y_max / y_step - 1e-9) * y_step;
  const auto px = [&](double x) { return left + kX + x / x_max * kWidth; };
  const auto py = [&](double y) { return top + kY + kHeight - y / y_max * kHeight; };
  std::string svg = fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"title\">{}</text>\n",
                                left + kX, top + 20, panel.title);
  for (double x = 0; x <= x_max + x_step / 2; x += x_step) {
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>"
        "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4:g}</text>\n",
        px(x), py(0), py(y_max), py(0) + 16, std::round(x / x_step) * x_step);
  }
  for (double y = 0; y <= y_max + y_step / 2; y += y_step) {
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{2:.1f}\" y2=\"{1:.1f}\" class=\"grid\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:g}</text>\n",
        px(0), py(y), px(x_max), px(0) - 6, py(y) + 4, std::round(y / y_step) * y_step);
  }
  svg += "<polyline class=\"curve\" points=\"";
  for (const auto& [x, y] : panel.points) svg += fmt::format("{:.1f},{:.1f} ", px(x), py(y));
  svg += fmt::format("\"/>\n<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                     px(x_max / 2), py(0) + 36, panel.x_label);
  svg += fmt::format(
      "<text transform=\"translate({:.1f},{:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
      left + 10, py(y_max / 2), panel.y_label);
  return svg;
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
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1140\" height=\"340\" "
      "viewBox=\"0 0 1140 340\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n"
      "<style>.title{font-size:13px;font-weight:bold}.grid{stroke:#ddd}"
      ".curve{fill:none;stroke:#1f6feb;stroke-width:2}</style>\n"
      "<rect width=\"1140\" height=\"340\" fill=\"white\"/>\n";
  svg += fmt::format(
      "<text x=\"60\" y=\"20\">{}; prompts {}, outputs {} tokens; {} requests, {} "
      "failed; {:.1f} output tokens/s</text>\n",
      describe_load(report.config), describe(report.config.prompt), describe(report.config.output),
      report.samples.size(), report.failed, report.output_tokens_per_s);
  const auto ttft =
      collect(report, [](const RequestSample& s) { return 1e3 * (s.first - s.sent); });
  const auto latency = collect(report, [](const RequestSample& s) { return s.end - s.sent; });
  svg += draw({"Time to first token", "ms", "% of requests", distribution(ttft), 100.0}, 10, 30);
  svg += draw({"End-to-end latency", "s", "% of requests", distribution(latency), 100.0}, 390, 30);
  svg += draw({"Throughput", "s since the start", "output tokens/s", throughput(report), 0.0}, 770,
              30);
  return svg + "</svg>\n";
}

}  // namespace trireme
