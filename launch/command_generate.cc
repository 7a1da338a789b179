// trireme generate: one prompt in, its continuation out; no server.
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"

namespace trireme {
namespace {

struct GenerateOptions {
  InstanceOptions instance;
  GenerateParams params;
  PromptFlags prompt;
  std::string prior_file;
  int top_logprobs = -1;
  bool json = false;
};

struct Outcome {
  std::string text;
  std::vector<int32_t> token_ids;
  nlohmann::json logprobs = nlohmann::json::array();
  FinishReason finish = FinishReason::kNone;
  std::string error;
  int32_t prompt_tokens = 0, cached_tokens = 0;
  double ttft_ms = 0, decode_tokens_per_s = 0;
  uint64_t seed = 0;
};

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAborted: return "aborted";
    default: return "error";
  }
}

void take(const Delta& delta, Outcome& outcome) {
  outcome.text += delta.text;
  // An echoed prompt comes in deltas of its own, with negative indices: text, but no output.
  if (delta.token_index >= 0) {
    outcome.token_ids.insert(outcome.token_ids.end(), delta.token_ids.begin(),
                             delta.token_ids.end());
  }
  for (const auto& info : delta.logprobs) {
    auto top = nlohmann::json::array();
    for (const auto& entry : info.top) top.push_back({entry.token, entry.logprob});
    outcome.logprobs.push_back({{"token", info.token}, {"logprob", info.logprob}, {"top", top}});
  }
  if (delta.finish == FinishReason::kNone) return;
  outcome.finish = delta.finish;
  outcome.error = delta.error;
  outcome.prompt_tokens = delta.prompt_tokens;
  outcome.cached_tokens = delta.cached_tokens;
}

// Runs the request, printing text as it comes unless `json`.
Outcome run(Frontend& frontend, const GenerateOptions& options) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](auto from, auto to) {
    return std::chrono::duration<double>(to - from).count();
  };
  Outcome outcome;
  const auto start = Clock::now();
  auto first = start, last = start;
  const auto stream = frontend.generate(options.params);
  outcome.seed = stream->seed();
  size_t first_count = 0;
  while (!stream->ended()) {
    stream->wait(std::chrono::milliseconds(1000));
    while (auto delta = stream->poll()) {
      take(*delta, outcome);
      if (!delta->token_ids.empty() && delta->token_index >= 0) {
        last = Clock::now();
        if (first_count == 0) {
          first = last;
          first_count = outcome.token_ids.size();
        }
      }
      if (!options.json) {
        std::fwrite(delta->text.data(), 1, delta->text.size(), stdout);
        // Nobody reads on: the rest need not be computed. main() reports it.
        if (std::fflush(stdout) != 0) return outcome;
      }
    }
  }
  outcome.ttft_ms = first_count == 0 ? 0 : 1e3 * seconds(start, first);
  const auto later = outcome.token_ids.size() - first_count;
  outcome.decode_tokens_per_s = later == 0 ? 0 : static_cast<double>(later) / seconds(first, last);
  return outcome;
}

void print(const Outcome& outcome, const GenerateOptions& options) {
  if (!options.json) {
    std::printf("\n");
    std::fflush(stdout);
    std::fprintf(stderr, "%d prompt + %zu tokens, first after %.0f ms, then %.1f tokens/s (%s)\n",
                 outcome.prompt_tokens, outcome.token_ids.size(), outcome.ttft_ms,
                 outcome.decode_tokens_per_s, to_string(outcome.finish));
    return;
  }
  nlohmann::ordered_json json;
  json["text"] = outcome.text;
  json["token_ids"] = outcome.token_ids;
  json["finish_reason"] = to_string(outcome.finish);
  json["prompt_tokens"] = outcome.prompt_tokens;
  json["cached_tokens"] = outcome.cached_tokens;
  json["ttft_ms"] = outcome.ttft_ms;
  json["decode_tokens_per_s"] = outcome.decode_tokens_per_s;
  json["seed"] = outcome.seed;
  if (options.top_logprobs >= 0) json["logprobs"] = outcome.logprobs;
  std::printf("%s\n", json.dump().c_str());
}

int generate(CommandContext& context, GenerateOptions& options) {
  GenerateParams& params = options.params;
  params.sampling.logprobs = options.top_logprobs;
  const auto read = [&] {
    read_prompt(options.prompt, params);
    if (!options.prior_file.empty()) params.prior_token_ids = read_token_file(options.prior_file);
  };
  OfflineSession session(context, options.instance, "warn", read);
  int code = 0;
  session.run([&](Frontend& frontend) {
    const Outcome outcome = run(frontend, options);
    print(outcome, options);
    if (outcome.finish == FinishReason::kError || outcome.finish == FinishReason::kAborted) {
      std::fprintf(stderr, "trireme: %s\n", outcome.error.c_str());
      code = 1;
    }
  });
  return code;
}

}  // namespace

void add_generate(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<GenerateOptions>();
  auto* command = app.add_subcommand("generate", "Continue one prompt, alone or under mpirun");
  add_instance_flags(*command, options->instance);
  add_prompt_flags(*command, "prompt", options->prompt);
  command->add_option("--prior-tokens", options->prior_file,
                      "A file with a JSON list of tokens already generated: goes on from there");
  add_sampling_flags(*command, options->params);
  command->add_option("--logprobs", options->top_logprobs,
                      "With --json: log-probabilities of each token and of the k best");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return generate(context, *options); };
  });
}

}  // namespace trireme
