// trireme generate: one prompt in, its continuation out; no server.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"
#include "launch/sampling_flags.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

struct GenerateOptions {
  InstanceOptions instance;
  SamplingFlags sampling;
  PromptFlags prompt;
  std::string prior_file;
  int top_logprobs = -1, top_prompt_logprobs = -1;
  bool no_special = false, keep_special = false;
  bool json = false;
};

// One of the request's outputs.
struct Output {
  std::string text;
  std::vector<int32_t> token_ids;
  nlohmann::json logprobs = nlohmann::json::array();
  FinishReason finish = FinishReason::kNone;
  std::string error;
  Clock::time_point first_token, last_token;
};

struct Outcome {
  std::vector<Output> outputs;
  nlohmann::json prompt_logprobs = nlohmann::json::array();
  int32_t prompt_tokens = 0, cached_tokens = 0;
  int64_t generated = 0;  // tokens of all outputs
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

nlohmann::json to_json(const TokenInfo& info) {
  auto top = nlohmann::json::array();
  for (const auto& entry : info.top) top.push_back({entry.token, entry.logprob});
  return {{"token", info.token}, {"logprob", info.logprob}, {"top", top}};
}

void take(const Delta& delta, Outcome& outcome) {
  Output& output = outcome.outputs.at(delta.output);
  output.text += delta.text;
  for (const auto& info : delta.logprobs) output.logprobs.push_back(to_json(info));
  if (delta.output == 0) {
    for (const auto& info : delta.prompt_logprobs) outcome.prompt_logprobs.push_back(to_json(info));
  }
  // An echoed prompt comes in deltas of its own, with negative indices: text, but no output.
  if (delta.token_index >= 0) {
    output.token_ids.insert(output.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  }
  if (delta.finish == FinishReason::kNone) return;
  output.finish = delta.finish;
  output.error = delta.error;
  output.first_token = delta.first_token;
  output.last_token = delta.last_token;
  outcome.prompt_tokens = delta.prompt_tokens;
  if (delta.output == 0) outcome.cached_tokens = delta.cached_tokens;
}

// From the times at which tokens were known: on a busy machine they may reach this thread together.
void take_times(Clock::time_point start, Outcome& outcome) {
  auto first = Clock::time_point::max(), last = start;
  int64_t later = 0;  // tokens that follow another one
  for (const Output& output : outcome.outputs) {
    const auto count = static_cast<int64_t>(output.token_ids.size());
    if (count == 0) continue;
    first = std::min(first, output.first_token);
    last = std::max(last, output.last_token);
    outcome.generated += count;
    later += count - 1;
  }
  const auto seconds = [](auto from, auto to) {
    return std::chrono::duration<double>(to - from).count();
  };
  if (outcome.generated > 0) outcome.ttft_ms = 1e3 * seconds(start, first);
  if (later > 0 && last > first) {
    outcome.decode_tokens_per_s = static_cast<double>(later) / seconds(first, last);
  }
}

// Runs the request. The text of a single output is printed as it comes, unless `json`.
Outcome run(Frontend& frontend, const GenerateOptions& options) {
  const GenerateParams& params = options.sampling.params;
  const bool streams = !options.json && params.n == 1;
  Outcome outcome;
  const auto start = Clock::now();
  const auto stream = frontend.generate(params);
  outcome.outputs.resize(params.n);  // which generate() has checked
  outcome.seed = stream->seed();
  while (!stream->ended()) {
    stream->wait(std::chrono::milliseconds(1000));
    while (auto delta = stream->poll()) {
      take(*delta, outcome);
      if (!streams) continue;
      std::fwrite(delta->text.data(), 1, delta->text.size(), stdout);
      // Nobody reads on: the rest need not be computed. main() reports it.
      if (std::fflush(stdout) != 0) {
        outcome.generated = static_cast<int64_t>(outcome.outputs[0].token_ids.size());
        return outcome;
      }
    }
  }
  take_times(start, outcome);
  return outcome;
}

void print_text(const Outcome& outcome) {
  const bool several = outcome.outputs.size() > 1;
  for (size_t i = 0; several && i < outcome.outputs.size(); ++i) {
    const Output& output = outcome.outputs[i];
    std::printf("%s--- output %zu (%s)\n", i == 0 ? "" : "\n", i, to_string(output.finish));
    std::fwrite(output.text.data(), 1, output.text.size(), stdout);
  }
  std::printf("\n");
  std::fflush(stdout);
  std::fprintf(stderr, "%d prompt + %ld tokens, first after %.0f ms, then %.1f tokens/s (%s)\n",
               outcome.prompt_tokens, static_cast<long>(outcome.generated), outcome.ttft_ms,
               outcome.decode_tokens_per_s, to_string(outcome.outputs[0].finish));
}

nlohmann::ordered_json to_json(const Output& output, bool logprobs) {
  nlohmann::ordered_json json;
  json["text"] = output.text;
  json["token_ids"] = output.token_ids;
  json["finish_reason"] = to_string(output.finish);
  if (logprobs) json["logprobs"] = output.logprobs;
  return json;
}

// The contract's fields are those of output 0; with several outputs all of them follow.
void print_json(const Outcome& outcome, const GenerateOptions& options) {
  const bool logprobs = options.top_logprobs >= 0;
  nlohmann::ordered_json json = to_json(outcome.outputs[0], logprobs);
  json["prompt_tokens"] = outcome.prompt_tokens;
  json["cached_tokens"] = outcome.cached_tokens;
  json["ttft_ms"] = outcome.ttft_ms;
  json["decode_tokens_per_s"] = outcome.decode_tokens_per_s;
  json["seed"] = outcome.seed;
  if (options.top_prompt_logprobs >= 0) json["prompt_logprobs"] = outcome.prompt_logprobs;
  if (outcome.outputs.size() > 1) {
    auto outputs = nlohmann::ordered_json::array();
    for (const Output& output : outcome.outputs) outputs.push_back(to_json(output, logprobs));
    json["outputs"] = outputs;
  }
  std::printf("%s\n", json.dump().c_str());
}

void read_input(GenerateOptions& options) {
  GenerateParams& params = options.sampling.params;
  params.sampling.logprobs = options.top_logprobs;
  params.sampling.prompt_logprobs = options.top_prompt_logprobs;
  params.add_special_tokens = !options.no_special;
  params.skip_special_tokens = !options.keep_special;
  read_sampling_lists(options.sampling);
  read_prompt(options.prompt, params);
  if (!options.prior_file.empty()) params.prior_token_ids = read_token_file(options.prior_file);
}

int generate(CommandContext& context, GenerateOptions& options) {
  OfflineSession session(context, options.instance, "warn", [&] { read_input(options); });
  int code = 0;
  session.run([&](Frontend& frontend) {
    const Outcome outcome = run(frontend, options);
    if (options.json) {
      print_json(outcome, options);
    } else {
      print_text(outcome);
    }
    for (const Output& output : outcome.outputs) {
      if (output.finish != FinishReason::kError && output.finish != FinishReason::kAborted)
        continue;
      std::fprintf(stderr, "trireme: %s\n", output.error.c_str());
      code = 1;
    }
  });
  return code;
}

}  // namespace

void add_generate(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<GenerateOptions>();
  SamplingFlags& sampling = options->sampling;
  sampling.params.sampling.temperature = 0.0f;
  sampling.params.sampling.max_tokens = 128;
  auto* command = app.add_subcommand("generate", "Continue one prompt, alone or under mpirun");
  add_instance_flags(*command, options->instance);
  add_prompt_flags(*command, "prompt", options->prompt);
  add_sampling_flags(*command, sampling);
  const auto output = [&](const char* name, auto& target, const char* help) {
    return command->add_option(name, target, help)->group("Output");
  };
  output("--n", sampling.params.n, "Outputs, each with draws of its own")->capture_default_str();
  output("--prior-tokens", options->prior_file,
         "A file with a JSON list of tokens already generated: goes on from there");
  auto* json = command->add_flag("--json", options->json, "One JSON object on stdout");
  json->group("Output");
  output("--logprobs", options->top_logprobs, "Log-probabilities of each token and of the k best")
      ->needs(json)
      ->check(at_least(0));
  output("--prompt-logprobs", options->top_prompt_logprobs,
         "The same of the prompt's tokens, from the second on")
      ->needs(json)
      ->check(at_least(0));
  const auto flag = [&](const char* name, bool& target, const char* help) {
    command->add_flag(name, target, help)->group("Output");
  };
  flag("--echo", sampling.params.echo, "Print the prompt as well");
  flag("--keep-special", options->keep_special, "Leave special tokens in the text");
  flag("--no-special", options->no_special,
       "Leave out what the tokenizer puts around a prompt (such as BOS)");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return generate(context, *options); };
  });
}

}  // namespace trireme
