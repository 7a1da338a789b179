#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "launch/command.h"

namespace trireme {
namespace {

CLI::Validator number(const std::string& description, const std::function<bool(double)>& passes) {
  return {[=](std::string& text) {
            double value = 0;
            const char* end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            const bool good = parsed.ec == std::errc() && parsed.ptr == end &&
                              std::isfinite(value) && passes(value);
            return good ? "" : fmt::format("'{}' is not a number {}", text, description);
          },
          ""};
}

}  // namespace

CLI::Validator at_least(double low) {
  return number(fmt::format("of at least {}", low), [low](double value) { return value >= low; });
}

CLI::Validator more_than(double low) {
  return number(fmt::format("above {}", low), [low](double value) { return value > low; });
}

CLI::Validator between(double low, double high) {
  return number(fmt::format("from {} to {}", low, high),
                [low, high](double value) { return value >= low && value <= high; });
}

CLI::Validator whole_number() {
  return {[](std::string& text) {
            uint64_t value = 0;
            const char* end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            return parsed.ec == std::errc() && parsed.ptr == end
                       ? ""
                       : fmt::format("'{}' is not a whole number from 0 to {}", text, UINT64_MAX);
          },
          ""};
}

void add_instance_flags(CLI::App& command, InstanceOptions& options) {
  command.add_option("--model", options.model, "A .gguf file or a Hugging Face model directory")
      ->required();
  command.add_option("--layout", options.layout,
                     "tensor=2,pipeline=2 or a TOML file; chosen and reported if not given");
  command
      .add_option("--device", options.device,
                  "cpu, cuda, or auto: cuda where every rank has a GPU of its own")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->envname("TRIREME_DEVICE")
      ->capture_default_str();
  command
      .add_option("--load-format", options.load_format,
                  "auto: the files' weights; dummy: random ones of config.json's shapes")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  command
      .add_option("--dtype", options.dtype,
                  "Of weights and activations on GPUs: bf16, f16, or auto: f16 for files "
                  "whose matrices are all F16, but for Gemma 3")
      ->check(CLI::IsMember({"auto", "bf16", "f16"}))
      ->capture_default_str();
  command.add_flag("--deterministic", options.deterministic,
                   "The same bits for a request whatever runs beside it and however its prompt is "
                   "cut: what the CPU backend does in any case, and GPUs refuse");
  command.add_option("--threads", options.threads, "Compute threads per rank (0: cores / ranks)");
  command
      .add_option_function<std::string>(
          "--isa", [&options](const std::string& name) { options.isa = cpu_isa_of(name); },
          "CPU instruction set; the machine's fastest if not given. avx512-bf16 rounds activations "
          "to bf16 where weights are bf16, avx512 does not")
      ->check(CLI::IsMember({"reference", "avx2", "avx512", "avx512-bf16"}));
  command
      .add_option("--profile", options.profile, "Scheduling profile: latency, balanced, throughput")
      ->capture_default_str();
  const std::string limits = "Limits (0: the profile's, see launch/README.md)";
  const auto limit = [&](const char* name, int32_t& target, const char* help) {
    command.add_option(name, target, help)->group(limits)->check(at_least(0));
  };
  limit("--token-budget", options.token_budget, "Tokens computed in one step");
  limit("--max-chunk", options.max_chunk, "Tokens of one prefill chunk");
  limit("--max-rows", options.max_rows, "Sequences in one step");
  limit("--max-running", options.max_running, "Sequences with KV blocks");
  limit("--max-queue", options.max_queue, "Sequences that may wait");
  limit("--max-context", options.max_context, "Prompt and generated tokens of one sequence");
  limit("--steps-in-flight", options.steps_in_flight, "Steps in flight (0: one per stage)");
  command
      .add_option("--look-ahead", options.look_ahead,
                  "Launch a step before the last one's tokens are known: on, off, auto")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->group(limits)
      ->capture_default_str();
  command
      .add_option(
          "--step-timeout", options.step_timeout_s,
          "Seconds after which a step of several ranks is stuck and the job ends, naming the "
          "rank (0: never)")
      ->check(between(0, 86400))
      ->group(limits)
      ->capture_default_str();
  const std::string kv = "KV cache";
  command
      .add_option("--block-size", options.block_size,
                  "Tokens in a KV block (0: 16 on CPU, 32 on GPU)")
      ->group(kv);
  command.add_option("--kv-dtype", options.kv_dtype, "auto, f32, f16 or bf16")
      ->group(kv)
      ->check(CLI::IsMember({"auto", "f32", "f16", "bf16"}))
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--kv-memory",
          [&options](const std::string& text) {
            options.kv_memory = parse_bytes(text, "--kv-memory");
          },
          "Bytes of KV cache per rank, e.g. 512MiB (default: what all sequences could use, within "
          "half "
          "of the free memory; on GPUs what is free)")
      ->group(kv);
  command
      .add_flag_callback(
          "--no-prefix-cache", [&options] { options.prefix_cache = false; },
          "Never reuse the KV of equal prefixes")
      ->group(kv);
}

void add_prompt_flags(CLI::App& command, const std::string& text_flag, PromptFlags& prompt) {
  auto* one = command.add_option_group("Prompt", "Exactly one of these");
  const auto add = [&](const std::string& name, auto& target, const char* help) {
    one->add_option("--" + name, target, help);
  };
  add(text_flag, prompt.text, "The text");
  add(text_flag + "-file", prompt.text_file, "The text from a file (-: stdin)");
  add("tokens", prompt.token_file,
      "A file with a JSON list of token ids in place of text (-: stdin)");
  one->require_option(1);
}

}  // namespace trireme
