#include "launch/bench_overlap.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "clients/svg_plot.h"
#include "launch/bench_load.h"
#include "launch/bench_stage.h"
#include "launch/recording.h"
#include "runtime/trace/overlap.h"

namespace trireme {
namespace {

// Steps in which every sequence decodes and none prefills.
struct SteadySteps {
  uint64_t first = 0, last = 0;  // [first, last)
  int64_t rows = 0;              // of all of them

  double rows_per_step() const {
    return static_cast<double>(rows) / static_cast<double>(last - first);
  }
};

SteadySteps find_steady(const RequestLog& log, size_t sequences, uint64_t in_flight) {
  const std::vector<RequestLife> lives = log.lives();
  uint64_t last_prefill = 0, first_end = UINT64_MAX;
  std::map<uint64_t, int64_t> rows;
  for (const RequestLife& life : lives) {
    uint64_t last_step = 0;
    for (const RequestSpan& span : life.spans) {
      if (span.phase == RequestPhase::kQueued) continue;
      ++rows[span.step];
      last_step = std::max(last_step, span.step);
      if (span.phase == RequestPhase::kPrefill) last_prefill = std::max(last_prefill, span.step);
    }
    first_end = std::min(first_end, last_step);
  }
  // The pipeline takes a round to fill, and ends with rounds that are not full.
  SteadySteps steady{last_prefill + 1 + 2 * in_flight, first_end, 0};
  if (lives.size() < sequences || log.dropped() > 0 || steady.last < steady.first + 4 * in_flight) {
    fail(ErrorCode::kInvalidArgument,
         "--tokens: too few steps have all {} sequences in them; ask for more tokens", sequences);
  }
  for (uint64_t step = steady.first; step < steady.last; ++step) steady.rows += rows[step];
  return steady;
}

struct Findings {
  SteadySteps steady;
  double rate = 0;   // tokens/s
  double bound = 0;  // tokens/s
  std::vector<StageOverlap> overlap;
  std::vector<StageTimes> times;
  int64_t clock_error = 0;
};

std::string plot(const Findings& found, const std::string& heading) {
  BarPanel time{"A step of each stage", "ms", {"compute", "exposed", "idle"}, {}, 0};
  BarPanel share{"Communication", "ms a step", {"hidden", "exposed"}, {}, 0};
  BarPanel alone{"Stages by themselves (line: the step)", "ms", {"alone"}, {}, 0};
  for (size_t i = 0; i < found.overlap.size(); ++i) {
    const StageOverlap& one = found.overlap[i];
    const std::string name = fmt::format("stage {}", one.stage);
    time.bars.push_back({name, {1e3 * one.compute, 1e3 * one.exposed, 1e3 * one.idle}});
    share.bars.push_back({name, {1e3 * (one.communication - one.exposed), 1e3 * one.exposed}});
    alone.bars.push_back({name, {1e3 * found.times[i].alone}});
  }
  alone.mark = 1e3 * found.overlap[0].step;
  return svg_begin(1140, 340, heading) + draw(time, 10, 30) + draw(share, 390, 30) +
         draw(alone, 770, 30) + svg_end();
}

nlohmann::ordered_json to_json(const Findings& found, OfflineSession& session,
                               const BenchOverlapOptions& options) {
  const Instance& instance = session.instance();
  const ParallelLayout& layout = session.instance().world().layout;
  nlohmann::ordered_json json;
  json["name"] = "overlap";
  json["value"] = found.rate;
  json["unit"] = "tokens/s";
  json["bound"] = found.bound;
  json["ratio"] = found.rate / found.bound;
  json["rows_per_step"] = found.steady.rows_per_step();
  json["steps"] = found.steady.last - found.steady.first;
  json["sequences"] = options.sequences;
  json["context"] = options.prompt;
  json["layout"] = layout.describe();
  json["backend"] = session.instance().backend().description();
  json["steps_in_flight"] = instance.scheduler_config().steps_in_flight;
  json["clock_error_us"] = 1e-3 * static_cast<double>(found.clock_error);
  json["stages"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < found.overlap.size(); ++i) {
    const StageOverlap& overlap = found.overlap[i];
    const StageTimes& times = found.times[i];
    nlohmann::ordered_json stage;
    stage["stage"] = overlap.stage;
    stage["layers"] = layout.stages[i].layers.count;
    stage["tensor"] = layout.stages[i].tensor;
    stage["step_ms"] = 1e3 * overlap.step;
    stage["compute_ms"] = 1e3 * overlap.compute;
    stage["communication_done_ms"] = 1e3 * overlap.communication;
    stage["communication_exposed_ms"] = 1e3 * overlap.exposed;
    stage["idle_ms"] = 1e3 * overlap.idle;
    stage["bubble"] = overlap.bubble();
    stage["alone_ms"] = 1e3 * times.alone;
    stage["together_ms"] = 1e3 * times.together;
    if (layout.stages[i].tensor > 1) {
      stage["reductions_done_ms"] = 1e3 * times.reductions;
      stage["reductions_exposed_ms"] = 1e3 * (times.together - times.without_reductions);
    }
    json["stages"].push_back(std::move(stage));
  }
  return json;
}

}  // namespace

void prepare_bench_overlap(const BenchOverlapOptions& options, InstanceOptions& instance) {
  instance.prefix_cache = false;
  const int32_t longest = options.prompt + options.tokens;
  if (instance.max_context == 0) {
    instance.max_context = longest + stage_bench_positions(options.stage_steps);
  }
  if (instance.max_running == 0) instance.max_running = options.sequences;
  // Every step: a token of a sequence takes at most one, and so does each chunk of a prompt.
  instance.record = {
      1, static_cast<uint64_t>(options.sequences) * static_cast<uint64_t>(options.prompt / 16 + 2) +
             16 * static_cast<uint64_t>(options.tokens)};
}

nlohmann::ordered_json bench_overlap(OfflineSession& session, const BenchOverlapOptions& options) {
  Instance& instance = session.instance();
  Recording recording(session, instance.spans()->window().count);
  session.run([&](Frontend& frontend) {
    run_load(frontend, instance, even_load(options.sequences, options.prompt, options.tokens), 1);
  });
  const std::vector<RankTrack> tracks = recording.finish();
  Findings found;
  int32_t rows = 0;
  on_root(session.environment(), [&] {
    const std::vector<RankRows> cut = cut_rows(tracks);
    const auto in_flight = static_cast<uint64_t>(instance.scheduler_config().steps_in_flight);
    found.steady =
        find_steady(*instance.requests(), static_cast<size_t>(options.sequences), in_flight);
    found.overlap = measure_overlap(cut, found.steady.first, found.steady.last);
    // All stages go at the same pace; the first one's steps are timed.
    found.rate = found.steady.rows_per_step() / found.overlap[0].step;
    for (const RankTrack& track : tracks) {
      found.clock_error = std::max(found.clock_error, track.clock_error);
    }
    rows = static_cast<int32_t>(found.steady.rows_per_step() + 0.5);
  });
  instance.world().control->broadcast(std::as_writable_bytes(std::span(&rows, 1)), 0);
  found.times =
      measure_stages(session, rows, options.prompt + options.tokens / 2, options.stage_steps);
  if (!session.is_root()) return {};
  double slowest = 0;
  for (const StageTimes& stage : found.times) slowest = std::max(slowest, stage.alone);
  found.bound = rows / slowest;
  nlohmann::ordered_json json = to_json(found, session, options);
  if (!options.plot.empty()) {
    std::ofstream file(options.plot, std::ios::binary | std::ios::trunc);
    file << plot(found, fmt::format("{}; {} sequences: {:.1f} tokens/s, {:.2f} of the bound",
                                    json["layout"].get<std::string>(), options.sequences,
                                    found.rate, found.rate / found.bound));
    if (!file.flush())
      fail(ErrorCode::kInvalidArgument, "--plot: {} cannot be written", options.plot);
  }
  return json;
}

}  // namespace trireme
