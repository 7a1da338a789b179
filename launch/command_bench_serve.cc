// trireme bench serve: load on a running server, measured where its clients are.
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "clients/load_generator.h"
#include "launch/command.h"

namespace trireme {
namespace {

struct BenchServeOptions {
  LoadConfig load;
  std::string prompt = "64", output = "64";
  std::string json_file, svg_file;
  bool json = false;
};

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << '\n';
  file.flush();
  if (!file) fail(ErrorCode::kInvalidArgument, "{}: cannot be written", path);
}

int bench_serve(CommandContext& context, BenchServeOptions& options) {
  log::init(context.log_level_given ? context.log_level : "warn");
  options.load.prompt = parse_lengths("--prompt-tokens", options.prompt);
  options.load.output = parse_lengths("--output-tokens", options.output);
  for (const auto& path : {options.json_file, options.svg_file}) {
    if (!path.empty()) write_file(path, "");  // refused before the load, not after it
  }
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto report = run_load(options.load, [&](int ended, int all) {
    if (terminal)
      std::fprintf(stderr, "\r%d of %d requests%s", ended, all, ended == all ? "\n" : "");
  });
  std::printf("%s\n", (options.json ? to_json(report) : to_text(report)).c_str());
  if (!options.json_file.empty()) write_file(options.json_file, to_json(report));
  if (!options.svg_file.empty()) write_file(options.svg_file, to_svg(report));
  return report.failed == 0 ? 0 : 1;
}

}  // namespace

void add_bench_serve(CLI::App& bench, CommandBody& body) {
  auto options = std::make_shared<BenchServeOptions>();
  LoadConfig& load = options->load;
  auto* command =
      bench.add_subcommand("serve", "Load on a running server: TTFT, time per token, tokens/s");
  const auto add = [&](const char* name, auto& target, const char* help) {
    return command->add_option(name, target, help)->capture_default_str();
  };
  add("--server", load.server, "HOST:PORT");
  add("--requests", load.requests, "Requests that are measured")->check(between(1, 1'000'000));
  add("--warmup", load.warmup, "Requests before them")->check(at_least(0));
  add("--concurrency", load.concurrency, "Closed loop: requests under way at any time")
      ->check(between(1, 10'000));
  add("--rate", load.rate, "Poisson arrivals per second (0: closed loop)")->check(at_least(0));
  add("--prompt-tokens", options->prompt, "Prompt lengths: 128, 32-256 or @FILE");
  add("--output-tokens", options->output, "Output lengths: 128, 32-256 or @FILE");
  add("--text-file", load.text_file, "Take prompts from this text (default: random tokens)");
  add("--shared-prefix", load.share_prefix, "Part of every prompt that is common to all")
      ->check(between(0, 1));
  add("--temperature", load.temperature, "0 is greedy")->check(at_least(0));
  add("--timeout", load.timeout_s, "Deadline of each request in seconds")->check(more_than(0));
  add("--seed", load.seed, "Of lengths, prompts and arrivals")->check(whole_number());
  add("--output", options->json_file, "Write the JSON report to this file");
  add("--plot", options->svg_file, "Write an SVG plot to this .svg file")
      ->check(CLI::Validator(
          [](std::string& path) {
            return path.ends_with(".svg") ? "" : path + " does not end in .svg";
          },
          ""));
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) {
      return launched_as_root_rank() ? bench_serve(context, *options) : 0;
    };
  });
}

}  // namespace trireme
