// trireme score: log-probabilities of a given token sequence.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"

namespace trireme {
namespace {

struct ScoreOptions {
  InstanceOptions instance;
  PromptFlags prompt;
  int top_k = 0;
  bool json = false;
};

struct Score {
  std::vector<TokenInfo> positions;  // from the second token on
  std::string error;
};

Score run(Frontend& frontend, const GenerateParams& params) {
  Score score;
  const auto stream = frontend.generate(params);
  while (!stream->ended()) {
    stream->wait(std::chrono::milliseconds(1000));
    while (auto delta = stream->poll()) {
      score.positions.insert(score.positions.end(), delta->prompt_logprobs.begin(),
                             delta->prompt_logprobs.end());
      if (delta->finish == FinishReason::kError || delta->finish == FinishReason::kAborted) {
        score.error = delta->error.empty() ? "the request was aborted" : delta->error;
      }
    }
  }
  return score;
}

void print(const Score& score, const ScoreOptions& options) {
  auto logprobs = nlohmann::json::array();
  auto top = nlohmann::json::array();
  double sum = 0;
  for (const auto& position : score.positions) {
    logprobs.push_back(position.logprob);
    sum += position.logprob;
    auto best = nlohmann::json::array();
    for (const auto& entry : position.top) best.push_back({entry.token, entry.logprob});
    top.push_back(std::move(best));
  }
  if (options.json) {
    std::printf("%s\n", nlohmann::json{{"logprobs", logprobs}, {"top", top}}.dump().c_str());
    return;
  }
  if (score.positions.empty()) {
    std::printf("nothing to score: the text is one token\n");
    return;
  }
  std::printf("position     token     logprob%s\n",
              options.top_k > 0 ? "  likeliest (token logprob)" : "");
  for (size_t i = 0; i < score.positions.size(); ++i) {
    std::printf("%8zu  %8d  %10.5f", i + 1, score.positions[i].token, score.positions[i].logprob);
    for (const auto& entry : score.positions[i].top) {
      std::printf("  %d %.3f", entry.token, entry.logprob);
    }
    std::printf("\n");
  }
  const auto count = static_cast<double>(score.positions.size());
  if (count > 0)
    std::printf("mean log-probability %.5f, perplexity %.4f\n", sum / count,
                std::exp(-sum / count));
}

int score(CommandContext& context, ScoreOptions& options) {
  GenerateParams params;
  params.sampling.temperature = 0.0f;
  params.sampling.max_tokens = 0;
  params.sampling.prompt_logprobs = options.top_k;

  OfflineSession session(context, options.instance, "warn",
                         [&] { read_prompt(options.prompt, params); });
  int code = 0;
  session.run([&](Frontend& frontend) {
    const Score result = run(frontend, params);
    if (!result.error.empty()) {
      std::fprintf(stderr, "trireme: %s\n", result.error.c_str());
      code = 1;
      return;
    }
    print(result, options);
  });
  return code;
}

}  // namespace

void add_score(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<ScoreOptions>();
  auto* command = app.add_subcommand("score", "Log-probabilities of a text or token sequence");
  add_instance_flags(*command, options->instance);
  add_prompt_flags(*command, "text", options->prompt);
  command->add_option("--top-k", options->top_k, "Report the k likeliest tokens of each position")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return score(context, *options); };
  });
}

}  // namespace trireme
