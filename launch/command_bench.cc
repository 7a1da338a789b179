// trireme bench decode|prefill|overlap|serve: each figure beside the limit measured in the same
// run.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/bench_model.h"
#include "launch/bench_overlap.h"
#include "launch/command.h"

namespace trireme {
namespace {

struct OverlapOptions {
  InstanceOptions instance;
  BenchOverlapOptions bench;
  bool json = false;
};

struct BenchOptions {
  InstanceOptions instance;
  BenchModelOptions model;
  bool json = false;
};

void print(const nlohmann::ordered_json& figures, bool json) {
  if (json) {
    std::printf("%s\n", figures.dump().c_str());
    return;
  }
  for (const auto& [key, value] : figures.items()) {
    std::printf("%-24s %s\n", key.c_str(),
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
}

using ModelBench = nlohmann::ordered_json (*)(OfflineSession&, const BenchModelOptions&);

int bench_model(CommandContext& context, BenchOptions& options, ModelBench bench) {
  auto& instance = options.instance;
  // Room for what is asked: every sequence at once, none cut short.
  instance.prefix_cache = false;
  if (instance.max_context == 0) {
    instance.max_context = options.model.prompt + std::max(options.model.tokens, 1);
  }
  if (instance.max_running == 0) instance.max_running = std::max(options.model.batch, 1);
  OfflineSession session(context, instance, "warn");
  const auto figures = bench(session, options.model);
  if (session.is_root()) print(figures, options.json);
  return 0;
}

CLI::App* add_model_bench(CLI::App& bench, const char* name, const char* help, ModelBench run,
                          const std::shared_ptr<BenchOptions>& options, CommandBody& body) {
  auto* command = bench.add_subcommand(name, help);
  add_instance_flags(*command, options->instance);
  command->add_option("--prompt-tokens", options->model.prompt, "Length of each random prompt")
      ->check(between(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--batch", options->model.batch, "Sequences at a time")
      ->check(between(1, 4096))
      ->capture_default_str();
  command->add_option("--repeats", options->model.repeats, "Runs; the median is reported")
      ->check(between(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, run, &body] {
    body = [options, run](CommandContext& context) { return bench_model(context, *options, run); };
  });
  return command;
}

void print_stages(const nlohmann::ordered_json& stages) {
  std::printf("%-7s%8s%9s%10s%12s%12s%9s%9s%9s\n", "stage", "layers", "step ms", "compute",
              "comm. done", "exposed", "idle", "bubble", "alone");
  for (const auto& stage : stages) {
    const auto ms = [&stage](const char* key) { return stage[key].get<double>(); };
    std::printf("%-7d%8d%9.3f%10.3f%12.3f%12.3f%9.3f%9.3f%9.3f\n", stage["stage"].get<int>(),
                stage["layers"].get<int>(), ms("step_ms"), ms("compute_ms"),
                ms("communication_done_ms"), ms("communication_exposed_ms"), ms("idle_ms"),
                ms("bubble"), ms("alone_ms"));
  }
}

int bench_overlap(CommandContext& context, OverlapOptions& options) {
  prepare_bench_overlap(options.bench, options.instance);
  OfflineSession session(context, options.instance, "warn");
  nlohmann::ordered_json figures = trireme::bench_overlap(session, options.bench);
  if (!session.is_root()) return 0;
  if (options.json) {
    print(figures, true);
    return 0;
  }
  const nlohmann::ordered_json stages = figures["stages"];
  figures.erase("stages");
  print(figures, false);
  print_stages(stages);
  return 0;
}

void add_bench_overlap(CLI::App& bench, CommandBody& body) {
  auto options = std::make_shared<OverlapOptions>();
  auto* command = bench.add_subcommand(
      "overlap", "A pipeline's decode beside its bound; communication and bubbles of each stage");
  add_instance_flags(*command, options->instance);
  const auto add = [&](const char* name, int32_t& target, const char* help, int32_t least) {
    command->add_option(name, target, help)->check(between(least, 1 << 20))->capture_default_str();
  };
  add("--sequences", options->bench.sequences, "Sequences that decode at the same time", 1);
  add("--prompt-tokens", options->bench.prompt, "Length of each random prompt", 1);
  add("--tokens", options->bench.tokens, "Tokens that each sequence generates", 2);
  add("--stage-steps", options->bench.stage_steps, "Timed steps of each stage by itself", 1);
  command->add_option("--plot", options->bench.plot, "Write an SVG plot to this file");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return bench_overlap(context, *options); };
  });
}

}  // namespace

void add_bench(CLI::App& app, CommandBody& body) {
  auto* bench =
      app.add_subcommand("bench", "Measure decode, prefill, a pipeline, or a running server");
  bench->require_subcommand(1);
  auto decode = std::make_shared<BenchOptions>();
  CLI::App* command = add_model_bench(
      *bench, "decode", "Tokens/s beside the memory's read bandwidth", bench_decode, decode, body);
  command->add_flag(
      "--idle-share", decode->model.idle_share,
      "Stamp the GPU's steps, and tell the share of time in which it had nothing to do");
  command->add_option("--tokens", decode->model.tokens, "Tokens that each sequence generates")
      ->check(between(2, 1 << 20))
      ->capture_default_str();
  // What they may be is checked with the request.
  command->add_option("--temperature", decode->model.temperature, "0: greedy")
      ->capture_default_str();
  command->add_option("--top-k", decode->model.top_k, "Tokens to choose from (0: all)")
      ->capture_default_str();
  command->add_option("--top-p", decode->model.top_p, "Probability to choose from")
      ->capture_default_str();
  command->add_option("--frequency-penalty", decode->model.frequency_penalty, "Of generated tokens")
      ->capture_default_str();
  auto prefill = std::make_shared<BenchOptions>();
  prefill->model.prompt = 512;
  add_model_bench(*bench, "prefill", "Prompt tokens/s beside the cores' arithmetic", bench_prefill,
                  prefill, body);
  add_bench_overlap(*bench, body);
  add_bench_serve(*bench, body);
}

}  // namespace trireme
