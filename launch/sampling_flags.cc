#include "launch/sampling_flags.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "launch/command.h"

namespace trireme {
namespace {

// The whole of `text` as a number.
template <typename Number>
std::optional<Number> parse(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// An empty list, which would stand for no restriction, is refused.
std::vector<int32_t> parse_ids(const char* flag, const std::optional<std::string>& given) {
  std::vector<int32_t> ids;
  if (!given) return ids;
  const std::string& text = *given;
  if (text.starts_with('@')) {
    ids = read_token_file(text.substr(1));
    if (ids.empty()) fail(ErrorCode::kInvalidArgument, "{}: the list is empty", flag);
    return ids;
  }
  for (size_t from = 0; from <= text.size();) {
    const size_t end = std::min(text.find(',', from), text.size());
    const auto id = parse<int32_t>(std::string_view(text).substr(from, end - from));
    if (!id) {
      fail(ErrorCode::kInvalidArgument,
           "{}: '{}' is no list of token ids (7,8,9 or @FILE with a JSON list)", flag, text);
    }
    ids.push_back(*id);
    from = end + 1;
  }
  return ids;
}

std::pair<int32_t, float> parse_bias(const std::string& text) {
  const size_t colon = text.find(':');
  const auto id = parse<int32_t>(std::string_view(text).substr(0, colon));
  const auto bias = colon == std::string::npos
                        ? std::nullopt
                        : parse<float>(std::string_view(text).substr(colon + 1));
  if (!id || !bias) {
    fail(ErrorCode::kInvalidArgument, "--logit-bias: '{}' is not ID:BIAS, such as 42:-1.5", text);
  }
  return {*id, *bias};
}

void add_choice_flags(CLI::App& command, SamplingFlags& flags) {
  SamplingParams& sampling = flags.params.sampling;
  const auto add = [&](const char* name, auto& target, const char* help) {
    return command.add_option(name, target, help)->group("Sampling")->capture_default_str();
  };
  add("--temperature", sampling.temperature, "0 is greedy");
  add("--top-k", sampling.top_k, "Keep the k likeliest tokens (0: all)");
  add("--top-p", sampling.top_p, "Keep the likeliest tokens up to this mass (1: all)");
  add("--min-p", sampling.min_p, "Keep tokens of at least this part of the best one's probability");
  add("--repetition-penalty", sampling.repetition_penalty, "Over prompt and output (1: off)");
  add("--presence-penalty", sampling.presence_penalty, "Over the output (0: off)");
  add("--frequency-penalty", sampling.frequency_penalty, "Over the output (0: off)");
  add("--logit-bias", flags.logit_bias, "Added to a token's logit; may be given several times")
      ->type_name("ID:BIAS");
  add("--allowed-tokens", flags.allowed_tokens, "Only these: 7,8,9 or @FILE with a JSON list")
      ->type_name("IDS");
  add("--banned-tokens", flags.banned_tokens, "Never these; in the same form")->type_name("IDS");
  command
      .add_option_function<uint64_t>(
          "--seed",
          [&flags](const uint64_t& seed) {
            flags.params.sampling.seed = seed;
            flags.params.seed_given = true;
          },
          "Makes sampling repeatable (default: a random one)")
      ->check(whole_number())
      ->group("Sampling");
}

void add_end_flags(CLI::App& command, SamplingFlags& flags) {
  GenerateParams& params = flags.params;
  const auto add = [&](const char* name, auto& target, const char* help) {
    return command.add_option(name, target, help)->group("Where an output ends");
  };
  add("--max-tokens", params.sampling.max_tokens, "Tokens to generate at most")
      ->capture_default_str();
  add("--min-tokens", params.sampling.min_tokens, "Tokens before the output may stop")
      ->capture_default_str();
  add("--stop", params.stop, "Stop string; may be given several times");
  add("--stop-id", params.sampling.stop_ids, "Stop token id; may be given several times");
  command.add_flag("--include-stop", params.include_stop, "Leave the stop string in the text")
      ->group("Where an output ends");
  command.add_flag("--ignore-eos", params.ignore_eos, "Do not stop at the model's end token")
      ->group("Where an output ends");
}

}  // namespace

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  add_choice_flags(command, flags);
  add_end_flags(command, flags);
}

void read_sampling_lists(SamplingFlags& flags) {
  SamplingParams& sampling = flags.params.sampling;
  sampling.allowed_tokens = parse_ids("--allowed-tokens", flags.allowed_tokens);
  sampling.banned_tokens = parse_ids("--banned-tokens", flags.banned_tokens);
  auto& biases = sampling.logit_bias;
  biases.clear();
  for (const std::string& bias : flags.logit_bias) biases.push_back(parse_bias(bias));
  std::sort(biases.begin(), biases.end());
  const auto twice =
      std::adjacent_find(biases.begin(), biases.end(),
                         [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != biases.end()) {
    fail(ErrorCode::kInvalidArgument, "--logit-bias: token id {} has two", twice->first);
  }
}

}  // namespace trireme
