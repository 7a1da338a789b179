// The flags that say how tokens are chosen and when an output ends: one set for generate and chat.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/frontend.h"

namespace trireme {

struct SamplingFlags {
  GenerateParams params;  // complete once read_sampling_lists() was called
  // "7,8,9" or "@FILE" with a JSON list of token ids.
  std::optional<std::string> allowed_tokens, banned_tokens;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
};

// --temperature, --top-k, …, --stop, --seed. What flags.params holds is what they default to.
void add_sampling_flags(CLI::App& command, SamplingFlags& flags);

// Brings the lists of tokens into flags.params; reads the files that they name. Throws
// kInvalidArgument naming the flag, kNotFound.
void read_sampling_lists(SamplingFlags& flags);

}  // namespace trireme
