// trireme tokenize and detokenize: text to token ids and back, by a model's own tokenizer.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "launch/command.h"
#include "runtime/instance_tokenizer.h"
#include "runtime/model/weight_source.h"

namespace trireme {
namespace {

struct TokenizeOptions {
  std::string model;
  bool json = false;
  bool no_special = false;
};

Tokenizer open(const CommandContext& context, const std::string& model) {
  log::init(context.log_level_given ? context.log_level : "warn");
  auto tokenizer = open_tokenizer(model, open_model(model)->config().vocab);
  if (!tokenizer) fail(ErrorCode::kNotFound, "{}: this model has no tokenizer", model);
  return std::move(*tokenizer);
}

int tokenize(CommandContext& context, const TokenizeOptions& options) {
  const Tokenizer tokenizer = open(context, options.model);
  const auto ids = tokenizer.encode(read_text_file("-"), !options.no_special);
  if (options.json) {
    std::printf("%s\n", nlohmann::json{{"token_ids", ids}}.dump().c_str());
  } else {
    for (const auto id : ids) std::printf("%d\n", id);
  }
  return 0;
}

int detokenize(CommandContext& context, const TokenizeOptions& options) {
  const Tokenizer tokenizer = open(context, options.model);
  const auto ids = read_token_file("-");
  const std::string text = tokenizer.decode(ids, options.no_special);
  if (options.json) {
    std::printf("%s\n", nlohmann::json{{"text", text}}.dump().c_str());
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<TokenizeOptions>();
  const auto add = [&](const char* name, const char* help, const char* flag, const char* flag_help,
                       auto run) {
    auto* command = app.add_subcommand(name, help);
    command->add_option("--model", options->model, "A .gguf file or a Hugging Face model directory")
        ->required();
    command->add_flag("--json", options->json, "One JSON object on stdout");
    command->add_flag(flag, options->no_special, flag_help);
    command->callback([options, run, &body] {
      // Under a launcher every rank is started; one answers.
      body = [options, run](CommandContext& context) {
        return launched_as_root_rank() ? run(context, *options) : 0;
      };
    });
  };
  add("tokenize", "Token ids of the text on stdin", "--no-special",
      "Leave out what the tokenizer puts around a text (such as BOS)", tokenize);
  add("detokenize", "Text of the token ids (a JSON list) on stdin", "--skip-special",
      "Leave special tokens out of the text", detokenize);
}

}  // namespace trireme
