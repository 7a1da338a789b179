// Drives a running server over gRPC and measures what its clients see: `trireme bench serve`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trireme {

// How many tokens a prompt or an output has.
struct LengthDistribution {
  int32_t low = 128, high = 128;  // uniform on [low, high]; equal: fixed
  std::vector<int32_t> values;    // if not empty: drawn from these instead
};
// "128", "32-256" or "@FILE" (whitespace-separated numbers). Throws kInvalidArgument naming `what`.
LengthDistribution parse_lengths(const std::string& what, const std::string& text);

struct LoadConfig {
  std::string server = "127.0.0.1:50051";
  int requests = 64;  // measured; warm-up ones come before
  int warmup = 4;
  int concurrency = 8;  // closed loop: so many requests are always under way
  double rate = 0.0;    // requests per second, Poisson arrivals; 0: closed loop
  uint64_t seed = 1;    // of lengths, prompts and arrivals
  LengthDistribution prompt{64, 64, {}};
  LengthDistribution output{64, 64, {}};
  // Prompts' texts are taken from this file at random places; empty: random token ids.
  std::string text_file;
  double share_prefix = 0.0;  // the part of every prompt that is the same for all, 0 to 1
  float temperature = 0.0f;
  double timeout_s = 300.0;  // deadline of each request
};

// One request as its client saw it; times in seconds since the measured part began.
struct RequestSample {
  double sent = 0.0;
  double first = -1.0;  // first token; -1: none came
  double end = 0.0;
  int32_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  std::vector<double> gaps;   // between events that brought tokens, per token
  std::vector<double> times;  // when tokens came, one per token
  std::string error;          // empty: it ended well
};

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0, mean = 0, max = 0;
};
Percentiles percentiles(std::vector<double> values);

struct LoadReport {
  LoadConfig config;
  std::vector<RequestSample> samples;
  double duration = 0.0;    // from the first measured request sent to the last ended
  double client_cpu = 0.0;  // seconds that this process computed meanwhile
  Percentiles ttft, time_per_output_token, inter_token_latency, latency;  // seconds
  double output_tokens_per_s = 0.0, total_tokens_per_s = 0.0, requests_per_s = 0.0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int ok = 0, failed = 0;
  std::vector<std::pair<std::string, int>> errors;  // message, count
  // GetLoad sampled once in a while: KV slots allocated but not used, over allocated.
  double kv_waste = 0.0;
  int kv_samples = 0;
};

// Blocks until all requests have ended. `progress` (may be empty) is told requests ended and all,
// from this thread. Throws kUnavailable if the server is not healthy, kInvalidArgument for lengths
// over the model's context. Errors of single requests are counted, not thrown.
LoadReport run_load(const LoadConfig& config,
                    const std::function<void(int ended, int all)>& progress = {});

std::string to_json(const LoadReport& report);  // one object, one line
std::string to_svg(const LoadReport& report);   // CDFs of TTFT and latency, throughput over time
std::string to_text(const LoadReport& report);  // for people

}  // namespace trireme
