// trireme inspect: what a model file or directory holds.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <map>

#include "base/log.h"
#include "launch/command.h"
#include "runtime/model/inspect.h"

namespace trireme {
namespace {

struct InspectOptions {
  std::string path;
  bool json = false;
};

// Of the tensors of one type.
struct Total {
  int64_t tensors = 0;
  int64_t elements = 0;
  int64_t bytes = 0;
};

std::map<std::string, Total> totals_by_type(const ModelFacts& facts) {
  std::map<std::string, Total> totals;
  for (const TensorFacts& tensor : facts.tensors) {
    Total& total = totals[tensor.type];
    ++total.tensors;
    total.elements += tensor.elements;
    total.bytes += tensor.bytes.value_or(0);
  }
  return totals;
}

void print_json(const ModelFacts& facts) {
  Json tensors = Json::array(), totals = Json::array();
  for (const TensorFacts& tensor : facts.tensors) {
    tensors.push_back({{"name", tensor.name},
                       {"type", tensor.type},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes ? Json(*tensor.bytes) : Json()}});
  }
  int64_t bytes = 0;
  for (const auto& [type, total] : totals_by_type(facts)) {
    totals.push_back({{"type", type},
                      {"tensors", total.tensors},
                      {"elements", total.elements},
                      {"bytes", total.bytes}});
    bytes += total.bytes;
  }
  const Json all = {
      {"path", facts.path},
      {"format", facts.format},
      {"config", facts.config},
      {"tensors", tensors},
      {"totals", totals},
      {"bytes", bytes},
      {"tokenizer", facts.tokenizer.empty() ? Json() : Json(facts.tokenizer)},
      {"chat_template", facts.chat_template.empty() ? Json() : Json(facts.chat_template)},
      {"refusal", facts.refusal.empty() ? Json() : Json(facts.refusal)}};
  // A file's strings may hold bytes that are not UTF-8.
  fmt::print("{}\n", all.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void print_text(const ModelFacts& facts) {
  fmt::print("{}: {}\n\nconfig\n", facts.path, facts.format);
  for (const auto& [key, value] : facts.config.items()) {
    const std::string text = value.is_string()
                                 ? printable(value.get_ref<const std::string&>())
                                 : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    fmt::print("  {} = {}\n", printable(key), text);
  }
  fmt::print("\ntensors\n");
  size_t width = 0;
  for (const TensorFacts& tensor : facts.tensors) width = std::max(width, tensor.name.size());
  for (const TensorFacts& tensor : facts.tensors) {
    fmt::print("  {:{}}  {:6}  {:>12}  [{}]\n", printable(tensor.name), width,
               printable(tensor.type), tensor.bytes ? fmt::format("{}", *tensor.bytes) : "?",
               fmt::join(tensor.shape, ", "));
  }
  fmt::print("\ntotals\n");
  int64_t bytes = 0;
  for (const auto& [type, total] : totals_by_type(facts)) {
    fmt::print("  {:6}  {} tensors, {} elements, {} bytes\n", printable(type), total.tensors,
               total.elements, total.bytes);
    bytes += total.bytes;
  }
  fmt::print("  all     {} tensors, {} bytes\n\ntokenizer: {}\n", facts.tensors.size(), bytes,
             facts.tokenizer.empty() ? "none" : printable(facts.tokenizer));
  if (facts.chat_template.empty()) {
    fmt::print("chat template: none\n");
  } else {
    fmt::print("chat template:\n{}\n", facts.chat_template);
  }
  fmt::print("{}\n", facts.refusal.empty() ? "runs here" : "does not run here: " + facts.refusal);
}

int inspect(CommandContext& context, const InspectOptions& options) {
  log::init(context.log_level_given ? context.log_level : "warn");
  const ModelFacts facts = inspect_model(options.path);
  options.json ? print_json(facts) : print_text(facts);
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<InspectOptions>();
  auto* command = app.add_subcommand(
      "inspect", "What a model holds: config, tensors, types, bytes, tokenizer, chat template");
  command->add_option("path", options->path, "A .gguf file or a Hugging Face model directory")
      ->required();
  command->add_flag("--json", options->json, "One JSON object on stdout");
  command->callback([options, &body] {
    // Under a launcher every rank is started; one answers.
    body = [options](CommandContext& context) {
      return launched_as_root_rank() ? inspect(context, *options) : 0;
    };
  });
}

}  // namespace trireme
