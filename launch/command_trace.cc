// trireme trace: a load's steps as a picture, for Perfetto.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "clients/load_generator.h"
#include "launch/bench_load.h"
#include "launch/command.h"
#include "launch/recording.h"
#include "runtime/trace/chrome_trace.h"

namespace trireme {
namespace {

struct TraceOptions {
  InstanceOptions instance;
  uint64_t steps = 100;
  uint64_t skip = 0;
  int32_t sequences = 8;
  std::string prompt = "128";
  std::string output = "32";
  uint64_t seed = 1;
  std::string out = "trace.json";
  bool json = false;
};

std::vector<LoadRequest> make_load(const TraceOptions& options) {
  const LengthDistribution prompt = parse_lengths("--prompt-tokens", options.prompt);
  const LengthDistribution output = parse_lengths("--tokens", options.output);
  std::mt19937_64 random(options.seed);
  const auto draw = [&random](const LengthDistribution& lengths) {
    if (!lengths.values.empty()) return lengths.values[random() % lengths.values.size()];
    return lengths.low +
           static_cast<int32_t>(random() % static_cast<uint64_t>(lengths.high - lengths.low + 1));
  };
  std::vector<LoadRequest> load;
  for (int32_t i = 0; i < options.sequences; ++i) load.push_back({draw(prompt), draw(output)});
  return load;
}

struct Written {
  uint64_t steps = 0;
  uint64_t dropped = 0;
  int64_t clock_error = 0, device_error = 0;
};

Written write(std::ofstream& file, const TraceOptions& options, const Instance& instance,
              const std::string& layout, const std::string& backend,
              const std::vector<RankTrack>& tracks) {
  const std::vector<RankRows> rows = cut_rows(tracks);
  Written written;
  for (const RankTrack& track : tracks) {
    written.clock_error = std::max(written.clock_error, track.clock_error);
    written.device_error = std::max(written.device_error, track.device_error);
    written.dropped += track.dropped;
  }
  for (const Segment& segment : rows[0].segments) written.steps += segment.lane == Lane::kStep;
  const RequestLog& log = *instance.requests();
  written.dropped += log.dropped();
  write_chrome_trace(file, rows, log.lives(),
                     {{"program", "trireme trace"},
                      {"layout", layout},
                      {"backend", backend},
                      {"clock_error_ns", std::to_string(written.clock_error)},
                      {"device_clock_error_ns", std::to_string(written.device_error)},
                      {"dropped", std::to_string(written.dropped)}});
  file.close();
  if (!file) fail(ErrorCode::kUnavailable, "--out: {} could not be written", options.out);
  return written;
}

void print(const Written& written, const TraceOptions& options, size_t ranks) {
  if (options.json) {
    const nlohmann::ordered_json json{{"out", options.out},
                                      {"ranks", ranks},
                                      {"steps", written.steps},
                                      {"clock_error_ns", written.clock_error},
                                      {"device_clock_error_ns", written.device_error},
                                      {"dropped", written.dropped}};
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  std::printf("%s: %llu steps of %zu rank%s, clocks within %.1f us; open it at ui.perfetto.dev\n",
              options.out.c_str(), static_cast<unsigned long long>(written.steps), ranks,
              ranks == 1 ? "" : "s", 1e-3 * static_cast<double>(written.clock_error));
  if (written.steps < options.steps) {
    std::printf("the load ended before step %llu: more sequences or tokens make more steps\n",
                static_cast<unsigned long long>(options.skip + options.steps));
  }
  if (written.dropped > 0) {
    std::printf("%llu spans did not fit and are missing\n",
                static_cast<unsigned long long>(written.dropped));
  }
}

int trace(CommandContext& context, TraceOptions& options) {
  std::vector<LoadRequest> load;
  std::ofstream file;
  // The longest sequence fits, and all have a slot: the lengths are the same on every rank.
  load = make_load(options);
  int32_t longest = 0;
  for (const LoadRequest& request : load) {
    longest = std::max(longest, request.prompt + request.tokens);
  }
  InstanceOptions& instance = options.instance;
  if (instance.max_context == 0) instance.max_context = longest;
  if (instance.max_running == 0) instance.max_running = options.sequences;
  instance.record = {options.skip + 1, options.steps};
  OfflineSession session(context, instance, "warn", [&] {
    file.open(options.out, std::ios::binary | std::ios::trunc);
    if (!file) fail(ErrorCode::kInvalidArgument, "--out: {} cannot be written", options.out);
  });
  // What the load does beyond the last step takes room as well.
  Recording recording(session, options.skip + options.steps + 1024);
  session.run([&](Frontend& frontend) {
    const Engine& engine = session.instance().engine();
    // A few steps more: the results of the last ones are still on their way.
    const uint64_t last =
        options.skip + options.steps +
        static_cast<uint64_t>(session.instance().scheduler_config().steps_in_flight);
    run_load(frontend, session.instance(), load, options.seed,
             [&] { return engine.stats().scheduler.steps > last; });
  });
  const std::vector<RankTrack> tracks = recording.finish();
  if (!session.is_root()) return 0;
  const Written written =
      write(file, options, session.instance(), session.instance().world().layout.describe(),
            session.instance().backend().description(), tracks);
  print(written, options, tracks.size());
  return 0;
}

}  // namespace

void add_trace(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<TraceOptions>();
  auto* command = app.add_subcommand(
      "trace", "Run a load and write what every rank did in each step (Chrome trace JSON)");
  add_instance_flags(*command, options->instance);
  command->add_option("--steps", options->steps, "Steps to record")
      ->check(between(1, 1'000'000))
      ->capture_default_str();
  command->add_option("--skip", options->skip, "Steps that come before")
      ->check(whole_number())
      ->capture_default_str();
  command->add_option("--sequences", options->sequences, "Requests, all sent at once")
      ->check(between(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--prompt-tokens", options->prompt,
                   "Length of the random prompts: N or LOW-HIGH")
      ->capture_default_str();
  command->add_option("--tokens", options->output, "Tokens that each generates: N or LOW-HIGH")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of lengths and prompts")
      ->check(whole_number())
      ->capture_default_str();
  command->add_option("--out", options->out, "The file to write")->capture_default_str();
  command->add_flag("--json", options->json, "What was recorded, as one JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return trace(context, *options); };
  });
}

}  // namespace trireme
