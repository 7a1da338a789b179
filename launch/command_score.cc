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
  std::string text, text_file, token_file;
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
  for (size_t i = 0; i < score.positions.size(); ++i) {
    std::printf("%6zu  %8d  %10.5f\n", i + 1, score.positions[i].token, score.positions[i].logprob);
  }
  const auto count = static_cast<double>(score.positions.size());
  if (count > 0)
    std::printf("mean log-probability %.5f, perplexity %.4f\n", sum / count,
                std::exp(-sum / count));
}

int score(CommandContext& context, ScoreOptions& options) {
  const int given = (options.text.empty() ? 0 : 1) + (options.text_file.empty() ? 0 : 1) +
                    (options.token_file.empty() ? 0 : 1);
  if (given != 1) {
    fail(ErrorCode::kInvalidArgument, "give exactly one of --text, --text-file and --tokens");
  }
  GenerateParams params;
  if (!options.token_file.empty()) params.token_ids = read_token_file(options.token_file);
  if (!options.text_file.empty()) params.text = read_text_file(options.text_file);
  if (!options.text.empty()) params.text = options.text;
  params.sampling.temperature = 0.0f;
  params.sampling.max_tokens = 0;
  params.sampling.prompt_logprobs = options.top_k;

  OfflineSession session(context, options.instance, "warn");
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
  command->add_option("--text,--prompt", options->text, "The text to score");
  command->add_option("--text-file", options->text_file, "The same from a file (-: stdin)");
  command->add_option("--tokens", options->token_file,
                      "A JSON list of token ids in place of text (-: stdin)");
  command->add_option("--top-k", options->top_k, "Report the k likeliest tokens of each position")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    body = [options](CommandContext& context) { return score(context, *options); };
  });
}

}  // namespace trireme
