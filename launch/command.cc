#include "launch/command.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace trireme {

bool launched_as_root_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* rank = std::getenv(name)) return std::string(rank) == "0";
  }
  return true;
}

int report_errors(const std::function<int()>& body) {
  try {
    return body();
  } catch (const Error& error) {
    // An error of all ranks is told by rank 0. Launchers that end a job with its first failing rank
    // (srun -K) must not see another one's exit before that.
    if (launched_as_root_rank()) {
      std::fprintf(stderr, "trireme: %s\n", error.what());
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    return exit_code(error.code());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "trireme: out of memory\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trireme: internal error: %s\n", error.what());
    return 1;
  }
}

void on_root(const MpiEnvironment& environment, const std::function<void()>& step) {
  struct {
    int32_t code = -1;
    char message[1020] = {};
  } outcome;
  if (environment.rank() == 0) {
    try {
      step();
    } catch (const Error& error) {
      outcome.code = static_cast<int32_t>(error.code());
      std::snprintf(outcome.message, sizeof(outcome.message), "%s", error.what());
    } catch (const std::exception& error) {
      outcome.code = static_cast<int32_t>(ErrorCode::kInternal);
      std::snprintf(outcome.message, sizeof(outcome.message), "%s", error.what());
    }
  }
  environment.make_control()->broadcast(std::as_writable_bytes(std::span(&outcome, 1)), 0);
  if (outcome.code >= 0) throw Error(static_cast<ErrorCode>(outcome.code), outcome.message);
}

int64_t parse_bytes(const std::string& text, const std::string& field) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  std::string unit = text.substr(used);
  for (auto& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  double scale = 0;
  if (unit.empty() || unit == "b")
    scale = 1;
  else if (unit == "k" || unit == "kib")
    scale = 1024.0;
  else if (unit == "m" || unit == "mib")
    scale = 1024.0 * 1024;
  else if (unit == "g" || unit == "gib")
    scale = 1024.0 * 1024 * 1024;
  const double bytes = value * scale;
  if (used == 0 || scale == 0 || !(bytes >= 0) || bytes > 1e18) {
    fail(ErrorCode::kInvalidArgument, "{}: '{}' is not a size (examples: 512MiB, 2G, 1000000)",
         field, text);
  }
  return static_cast<int64_t>(bytes);
}

std::string read_text_file(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorCode::kNotFound, "{}: cannot be read", path);
  // A folder opens, and nothing comes of it; an empty file gives no byte either, and is none.
  if (std::filesystem::is_directory(path)) {
    fail(ErrorCode::kInvalidArgument, "{}: is a folder, not a file", path);
  }
  text << file.rdbuf();
  return text.str();
}

std::vector<int32_t> read_token_file(const std::string& path) {
  const std::string name = path == "-" ? "stdin" : path;
  auto json = nlohmann::json::parse(read_text_file(path), nullptr, false);
  if (json.is_object() && json.contains("token_ids")) json = json["token_ids"];
  if (!json.is_array()) {
    fail(ErrorCode::kInvalidArgument, "{}: not a JSON list of token ids", name);
  }
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const auto& item : json) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX) {
      fail(ErrorCode::kInvalidArgument, "{}: entry {} is not a token id", name, ids.size());
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

void read_prompt(const PromptFlags& prompt, GenerateParams& params) {
  if (!prompt.token_file.empty()) params.token_ids = read_token_file(prompt.token_file);
  if (!prompt.text_file.empty()) params.text = read_text_file(prompt.text_file);
  if (prompt.text) params.text = prompt.text;
}

void end_broken_world(Instance& instance, const std::exception& error) {
  World& world = instance.world();
  if (world.control->size() == 1) {
    log::error("{}", error.what());
    std::_Exit(1);
  }
  // Where the watchdog has spoken, all others are ending too.
  if (world.watchdog != nullptr && world.watchdog->has_ended()) std::_Exit(kBrokenWorld);
  std::fprintf(stderr, "trireme: %s\n", error.what());
  MpiEnvironment::abort(kBrokenWorld);
}

OfflineSession::OfflineSession(CommandContext& context, const InstanceOptions& options,
                               const std::string& default_log_level,
                               const std::function<void()>& prepare)
    : environment_(context.argc, context.argv) {
  const auto who = environment_.size() == 1
                       ? std::string()
                       : fmt::format("rank {} {}", environment_.rank(), environment_.host());
  log::init(context.log_level_given ? context.log_level : default_log_level, who);
  if (prepare) on_root(environment_, prepare);
  instance_ = std::make_unique<Instance>(environment_, options);
}

OfflineSession::~OfflineSession() = default;

void OfflineSession::run(const std::function<void(Frontend&)>& body) {
  try {
    if (!is_root()) {
      instance_->worker().run();
      return;
    }
    FrontendConfig config;
    config.threads = 1;
    config.max_context = instance_->scheduler_config().max_context;
    config.vocab = instance_->config().vocab;
    config.eos_ids = instance_->config().eos_ids;
    config.max_logprobs = -1;
    Engine& engine = instance_->engine();
    Frontend frontend(engine, instance_->tokenizer(), config);
    std::exception_ptr body_error;
    std::thread client([&] {
      try {
        body(frontend);
      } catch (...) {
        body_error = std::current_exception();
      }
      engine.stop();
    });
    std::exception_ptr engine_error;
    try {
      engine.run();
    } catch (...) {
      engine_error = std::current_exception();
    }
    client.join();
    if (engine_error) std::rethrow_exception(engine_error);
    if (body_error) std::rethrow_exception(body_error);
  } catch (const Error& error) {
    // The root's own input errors leave a world that ended well; anything else takes it down.
    const bool input = is_root() && exit_code(error.code()) == 2;
    if (environment_.size() == 1 || input) throw;
    end_broken_world(*instance_, error);
  }
}

}  // namespace trireme
