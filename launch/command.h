// What the subcommands share: how they are registered, and the flags that bring up a model.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/world.h"
#include "runtime/frontend.h"
#include "runtime/instance.h"

namespace trireme {

// What main() knows before a subcommand runs.
struct CommandContext {
  int* argc = nullptr;
  char*** argv = nullptr;
  std::string log_level = "info";
  bool log_level_given = false;
};

// Runs after parsing; returns the exit code.
using CommandBody = std::function<int(CommandContext&)>;

// Each adds its subcommand to `app` and, when it is the one called, stores its body in `body`.
void add_serve(CLI::App& app, CommandBody& body);
void add_generate(CLI::App& app, CommandBody& body);
void add_score(CLI::App& app, CommandBody& body);
void add_inspect(CLI::App& app, CommandBody& body);
void add_tokenize(CLI::App& app, CommandBody& body);
void add_chat(CLI::App& app, CommandBody& body);
void add_bench(CLI::App& app, CommandBody& body);
void add_bench_serve(CLI::App& bench, CommandBody& body);
void add_trace(CLI::App& app, CommandBody& body);

// Checks of a flag's value, which say in one line what it must be. Only finite numbers pass.
CLI::Validator at_least(double low);
CLI::Validator more_than(double low);
CLI::Validator between(double low, double high);
// Of unsigned flags: CLI11 would take -1 and what is too large as some other number.
CLI::Validator whole_number();

// --model, --layout, --threads, --profile and the limits, into `options`.
void add_instance_flags(CLI::App& command, InstanceOptions& options);

// Where a command's prompt comes from: exactly one of these is given.
struct PromptFlags {
  std::optional<std::string> text;
  std::string text_file, token_file;
};

// --`text_flag` (such as "prompt"), --`text_flag`-file and --tokens, into `prompt`.
void add_prompt_flags(CLI::App& command, const std::string& text_flag, PromptFlags& prompt);

// Fills params.text or params.token_ids; reads the file or stdin that the flags name. Throws
// kInvalidArgument, kNotFound.
void read_prompt(const PromptFlags& prompt, GenerateParams& params);

// "512MiB", "2G", "1000000" -> bytes. Throws kInvalidArgument naming `field`.
int64_t parse_bytes(const std::string& text, const std::string& field);

// A JSON list of token ids, or an object with one under "token_ids", from a file ("-": stdin).
// Throws kNotFound, kInvalidArgument.
std::vector<int32_t> read_token_file(const std::string& path);

// All of a file, or of stdin for "-". Throws kNotFound.
std::string read_text_file(const std::string& path);

// A loaded model on every rank of this job, and on rank 0 a body that talks to it through a
// frontend while the engine runs. Offline commands (generate, score, bench) are built on it.
//
// Loading errors are agreed among the ranks: all return the same exit code and rank 0 prints the
// message. After loading, an error on any rank ends the whole job.
class OfflineSession {
 public:
  //
  // `prepare` (optional) reads the command's input: on rank 0 only, which alone has a stdin, and
  // before the model is opened; an error of its ends every rank.
  OfflineSession(CommandContext& context, const InstanceOptions& options,
                 const std::string& default_log_level, const std::function<void()>& prepare = {});
  ~OfflineSession();

  bool is_root() const { return environment_.rank() == 0; }
  MpiEnvironment& environment() { return environment_; }
  Instance& instance() { return *instance_; }

  // Rank 0 runs `body` on a thread beside the engine; the other ranks work until it returns.
  // An Error thrown by the body is rethrown on rank 0 once the other ranks have been released.
  void run(const std::function<void(Frontend&)>& body);

 private:
  MpiEnvironment environment_;
  std::unique_ptr<Instance> instance_;
};

// Runs `step` on rank 0 only; an Error of its is thrown on every rank. Collective.
void on_root(const MpiEnvironment& environment, const std::function<void()>& step);

// Runs `body`, prints an Error's message on stderr (rank 0 only, where there are ranks), and gives
// the exit code.
int report_errors(const std::function<int()>& body);

// Whether this process is rank 0 as far as the launcher's environment tells; true without one.
bool launched_as_root_rank();

}  // namespace trireme
