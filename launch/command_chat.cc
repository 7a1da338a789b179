// trireme chat: an interactive client of a server, or one question with --prompt.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "clients/client.h"
#include "launch/chat_format.h"
#include "launch/command.h"
#include "launch/sampling_flags.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

struct ChatOptions {
  std::string server = "127.0.0.1:50051";
  std::optional<std::string> prompt;  // none: an interactive talk
  std::string system;
  bool raw = false, json = false;
  double wait_s = 10;
  SamplingFlags sampling;
};

// Set by Ctrl-C: ends the answer at hand, or the conversation when none is.
std::atomic<bool> interrupted = false;

void on_interrupt(int) { interrupted = true; }

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  std::string finish = "aborted";
  int32_t prompt_tokens = 0, cached_tokens = 0;
  bool interrupted = false;  // by the user
  double ttft_ms = 0, tokens_per_s = 0;
};

// Cancels a stream when the user interrupts it, also while nothing comes from the server.
class InterruptWatch {
 public:
  explicit InterruptWatch(EventStream& events)
      : thread_([this, &events](const std::stop_token& stop) { watch(stop, events); }) {}

 private:
  void watch(const std::stop_token& stop, EventStream& events) {
    std::unique_lock lock(mutex_);
    while (!interrupted && !stop.stop_requested()) {
      ended_.wait_for(lock, stop, std::chrono::milliseconds(20), [] { return interrupted.load(); });
    }
    if (interrupted) events.cancel();
  }

  std::mutex mutex_;
  std::condition_variable_any ended_;
  std::jthread thread_;
};

std::string finish_name(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP: return "stop";
    case v1::FINISH_REASON_LENGTH: return "length";
    case v1::FINISH_REASON_ABORTED: return "aborted";
    default: return "error";
  }
}

// What the flags say, as the wire has it.
v1::GenerateRequest to_request(const GenerateParams& params) {
  v1::GenerateRequest request;
  const SamplingParams& from = params.sampling;
  v1::SamplingOptions& sampling = *request.mutable_sampling();
  sampling.set_temperature(from.temperature);
  sampling.set_top_k(from.top_k);
  sampling.set_top_p(from.top_p);
  sampling.set_min_p(from.min_p);
  sampling.set_repetition_penalty(from.repetition_penalty);
  sampling.set_presence_penalty(from.presence_penalty);
  sampling.set_frequency_penalty(from.frequency_penalty);
  for (const auto& [token, bias] : from.logit_bias) (*sampling.mutable_logit_bias())[token] = bias;
  sampling.mutable_allowed_tokens()->Assign(from.allowed_tokens.begin(), from.allowed_tokens.end());
  sampling.mutable_banned_tokens()->Assign(from.banned_tokens.begin(), from.banned_tokens.end());
  if (params.seed_given) sampling.set_seed(from.seed);
  v1::StopOptions& stop = *request.mutable_stop();
  stop.set_max_tokens(from.max_tokens);
  stop.set_min_tokens(from.min_tokens);
  for (const std::string& text : params.stop) stop.add_stop(text);
  stop.mutable_stop_ids()->Assign(from.stop_ids.begin(), from.stop_ids.end());
  stop.set_include_stop(params.include_stop);
  stop.set_ignore_eos(params.ignore_eos);
  return request;
}

class Conversation {
 public:
  Conversation(Client& client, const ChatOptions& options) : client_(client), options_(options) {
    const auto model = client.model_info();
    if (!model.has_tokenizer()) {
      fail(ErrorCode::kFailedPrecondition, "chat: the server's model has no tokenizer");
    }
    format_ = options.raw ? ChatFormat::kPlain : detect_chat_format(model.chat_template());
    if (!options.raw && format_ == ChatFormat::kPlain) {
      log::warn("the model's chat template is of no known format; using plain text");
    }
    auto system = options.system;
    if (system.empty()) system = default_system(format_, model.chat_template()).value_or("");
    if (!system.empty() && !options.raw) messages_.push_back({"system", system});
  }

  // Streams the answer to `user` to stdout (unless `quiet`).
  Answer ask(const std::string& user, bool quiet) {
    messages_.push_back({"user", user});
    const Answer answer = stream(request(user), quiet);
    messages_.push_back({"assistant", answer.text});
    return answer;
  }

 private:
  v1::GenerateRequest request(const std::string& user) const {
    v1::GenerateRequest request = to_request(options_.sampling.params);
    request.set_text(options_.raw ? user : format_chat(format_, messages_));
    if (options_.raw || options_.sampling.params.ignore_eos) return request;
    // The stop markers are special tokens, which the text leaves out: stop on their ids.
    for (const auto& stop : chat_stops(format_)) {
      const auto ids = client_.tokenize(stop, false);
      if (ids.size() == 1)
        request.mutable_stop()->add_stop_ids(ids[0]);
      else
        request.mutable_stop()->add_stop(stop);
    }
    return request;
  }

  Answer stream(const v1::GenerateRequest& request, bool quiet) const {
    Answer answer;
    const auto start = Clock::now();
    auto first = start, last = start;
    size_t first_count = 0;
    auto events = client_.generate(request);
    try {
      const InterruptWatch watch(events);
      v1::GenerateEvent event;
      while (!interrupted && events.next(event)) {
        const size_t before = answer.token_ids.size();
        take(event, quiet, answer);
        if (answer.token_ids.size() == before) continue;
        last = Clock::now();
        if (before > 0) continue;
        first = last;
        first_count = answer.token_ids.size();
      }
    } catch (const Error&) {
      if (!interrupted) throw;
    }
    answer.interrupted = interrupted.exchange(false);
    const auto seconds = [](auto from, auto to) {
      return std::chrono::duration<double>(to - from).count();
    };
    answer.ttft_ms = 1e3 * seconds(start, first);
    const auto later = static_cast<double>(answer.token_ids.size() - first_count);
    answer.tokens_per_s = later > 0 ? later / seconds(first, last) : 0;
    return answer;
  }

  static void take(const v1::GenerateEvent& event, bool quiet, Answer& answer) {
    if (event.has_accepted()) answer.prompt_tokens = event.accepted().prompt_tokens();
    if (!event.has_delta()) return;
    const auto& delta = event.delta();
    answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                            delta.token_ids().end());
    answer.text += delta.text();
    if (!quiet) {
      std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
      std::fflush(stdout);
    }
    if (delta.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return;
    answer.finish = finish_name(delta.finish_reason());
    answer.cached_tokens = delta.usage().cached_tokens();
    if (!delta.error().empty()) fail(ErrorCode::kInternal, "chat: {}", delta.error());
  }

  Client& client_;
  const ChatOptions& options_;
  ChatFormat format_ = ChatFormat::kPlain;
  std::vector<ChatMessage> messages_;
};

void print_figures(const Answer& answer) {
  std::fprintf(stderr,
               "time to first token %.0f ms, then %.1f tokens/s (%d prompt tokens, %d cached, "
               "%zu generated, %s)\n",
               answer.ttft_ms, answer.tokens_per_s, answer.prompt_tokens, answer.cached_tokens,
               answer.token_ids.size(), answer.finish.c_str());
}

int ask_once(Conversation& conversation, const ChatOptions& options) {
  const Answer answer = conversation.ask(*options.prompt, options.json);
  const int code = answer.finish == "aborted" ? 1 : 0;
  if (code != 0 && !answer.interrupted)
    std::fprintf(stderr, "\ntrireme: the server ended the answer\n");
  if (!options.json) {
    std::printf("\n");
    std::fflush(stdout);
    print_figures(answer);
    return code;
  }
  nlohmann::ordered_json json;
  json["text"] = answer.text;
  json["token_ids"] = answer.token_ids;
  json["finish_reason"] = answer.finish;
  json["prompt_tokens"] = answer.prompt_tokens;
  json["cached_tokens"] = answer.cached_tokens;
  json["ttft_ms"] = answer.ttft_ms;
  json["decode_tokens_per_s"] = answer.tokens_per_s;
  std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return code;
}

int converse(Conversation& conversation) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) std::fprintf(stderr, "Ask away. Ctrl-C ends an answer; Ctrl-D ends the talk.\n");
  std::string line;
  while (true) {
    if (terminal) std::fprintf(stderr, "\n> ");
    if (!std::getline(std::cin, line)) {
      if (terminal) std::fprintf(stderr, "\n");
      break;
    }
    if (line.empty()) continue;
    const Answer answer = conversation.ask(line, false);
    std::printf("\n");
    std::fflush(stdout);
    print_figures(answer);
  }
  return 0;
}

int chat(CommandContext& context, ChatOptions& options) {
  log::init(context.log_level_given ? context.log_level : "warn");
  read_sampling_lists(options.sampling);
  if (options.prompt && options.prompt->empty()) {
    fail(ErrorCode::kInvalidArgument, "--prompt: it is empty");
  }
  Client client(options.server);
  client.wait_healthy(std::chrono::milliseconds(static_cast<int64_t>(options.wait_s * 1000)));
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: Ctrl-C at the prompt ends the talk
  sigaction(SIGINT, &action, nullptr);
  Conversation conversation(client, options);
  return options.prompt ? ask_once(conversation, options) : converse(conversation);
}

}  // namespace

void add_chat(CLI::App& app, CommandBody& body) {
  auto options = std::make_shared<ChatOptions>();
  auto* command = app.add_subcommand("chat", "Talk to a server");
  command->add_option("--server", options->server, "HOST:PORT")->capture_default_str();
  command->add_option("--prompt", options->prompt, "Ask this one question and end");
  command->add_option("--system", options->system, "The system message (default: the template's)");
  command->add_flag("--raw", options->raw, "Send text as it is, in no chat format");
  command->add_option("--wait", options->wait_s, "Seconds to wait until the server is healthy")
      ->check(at_least(0))
      ->capture_default_str();
  auto* json =
      command->add_flag("--json", options->json, "With --prompt: one JSON object on stdout");
  json->needs("--prompt");
  options->sampling.params.sampling.temperature = 0.0f;
  options->sampling.params.sampling.max_tokens = 512;
  add_sampling_flags(*command, options->sampling);
  command->callback([options, &body] {
    // Under a launcher every rank is started; one talks.
    body = [options](CommandContext& context) {
      return launched_as_root_rank() ? chat(context, *options) : 0;
    };
  });
}

}  // namespace trireme
