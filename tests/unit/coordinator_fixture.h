// A server on a loopback port before a scripted engine, a client of it, and what its calls gave.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "clients/client.h"
#include "runtime/coordinator.h"
#include "runtime/frontend.h"
#include "tests/support/errors.h"
#include "tests/unit/scripted_engine.h"

namespace trireme::test {

using namespace std::chrono_literals;

struct Options {
  ScriptedEngine::Script script = nullptr;
  size_t capacity = 1000;
  std::vector<std::string> words = {};
  bool tokenizer = true;
  int32_t max_context = 10'000;
  std::chrono::milliseconds keep{60'000};
  int64_t max_ended_bytes = 256 << 20;
};

// Engine, frontend, server and a client of it.
class Service {
 public:
  explicit Service(const Options& options = {})
      : tokenizer_(byte_tokenizer(options.words)), engine(options.script, options.capacity) {
    CoordinatorConfig listen;
    listen.listen = "127.0.0.1:0";
    FrontendConfig config;
    config.vocab = kVocab;
    config.max_context = options.max_context;
    config.eos_ids = {kEos};
    config.keep = options.keep;
    config.max_ended_bytes = options.max_ended_bytes;
    frontend.emplace(engine, options.tokenizer ? &tokenizer_ : nullptr, config);
    coordinator.emplace(listen);
    ServerDescription description;
    description.version = "1.2.3";
    description.layout = "tensor=1";
    description.model.name = "letters";
    description.pool.blocks = {100};
    coordinator->serve(*frontend, engine, description);
    client.emplace(address());
  }
  ~Service() {
    engine.stop();
    coordinator->shutdown(0ms);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(coordinator->port()); }

 private:
  const Tokenizer tokenizer_;

 public:
  ScriptedEngine engine;
  std::optional<Frontend> frontend;
  std::optional<Coordinator> coordinator;
  std::optional<Client> client;
};

inline v1::GenerateRequest request(int32_t max_tokens = 5, const std::string& text = "hello") {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_stop()->set_max_tokens(max_tokens);
  return request;
}

struct Outcome {
  v1::Accepted accepted;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<v1::OutputDelta> deltas;
  v1::OutputDelta last;
  int ends = 0;
};

inline void take(const v1::GenerateEvent& event, Outcome& outcome) {
  if (event.has_accepted()) {
    EXPECT_TRUE(outcome.deltas.empty());
    outcome.accepted = event.accepted();
    return;
  }
  const v1::OutputDelta& delta = event.delta();
  outcome.text += delta.text();
  outcome.ids.insert(outcome.ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  outcome.deltas.push_back(delta);
  if (delta.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return;
  outcome.last = delta;
  ++outcome.ends;
}

inline Outcome drain(EventStream stream) {
  Outcome outcome;
  v1::GenerateEvent event;
  while (stream.next(event)) take(event, outcome);
  return outcome;
}

inline bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 5000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

}  // namespace trireme::test
