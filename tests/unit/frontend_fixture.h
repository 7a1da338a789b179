// Requests to a frontend on a scripted engine, and what came of them.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/frontend.h"
#include "tests/unit/scripted_engine.h"

namespace trireme::test {

using namespace std::chrono_literals;

inline FrontendConfig config() {
  FrontendConfig config;
  config.vocab = kVocab;
  config.max_context = 64;
  config.eos_ids = {kEos};
  return config;
}

inline GenerateParams request(int32_t max_tokens = 8, const std::string& text = "hello") {
  GenerateParams params;
  params.text = text;
  params.sampling.max_tokens = max_tokens;
  return params;
}

// Waits until no request is live: a reader hears of a request's end before it is counted out.
inline void expect_none_live(const Frontend& frontend) {
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  while (frontend.live_requests() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(frontend.live_requests(), 0);
}

struct Outcome {
  int32_t first = 0;  // the first token's index
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenInfo> logprobs, prompt_logprobs;
  Delta last;
  int ends = 0;
};

inline void take(const Delta& delta, Outcome& outcome) {
  if (outcome.ids.empty()) outcome.first = delta.token_index;
  if (delta.token_index >= 0 && !delta.token_ids.empty()) {
    EXPECT_EQ(delta.token_index, outcome.first + static_cast<int32_t>(outcome.ids.size()));
  }
  if (delta.token_index >= 0) {
    outcome.ids.insert(outcome.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  }
  outcome.text += delta.text;
  outcome.logprobs.insert(outcome.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
  outcome.prompt_logprobs.insert(outcome.prompt_logprobs.end(), delta.prompt_logprobs.begin(),
                                 delta.prompt_logprobs.end());
  if (delta.finish == FinishReason::kNone) return;
  outcome.last = delta;
  ++outcome.ends;
}

inline std::vector<Outcome> drain_all(OutputStream& stream, int outputs,
                                      size_t entries = OutputStream::kAll) {
  std::vector<Outcome> outcomes(outputs);
  while (!stream.ended()) {
    if (!stream.wait(5s)) {
      ADD_FAILURE() << "nothing came";
      return outcomes;
    }
    while (const auto delta = stream.poll(entries)) take(*delta, outcomes.at(delta->output));
  }
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.ends, 1);
  EXPECT_FALSE(stream.poll().has_value());
  return outcomes;
}

inline Outcome drain(OutputStream& stream) { return drain_all(stream, 1)[0]; }

// A generated text's outcome: `script` is what the engine would go on to say.
inline Outcome run(const GenerateParams& params, const std::string& script,
                   const std::vector<std::string>& words = {}, int extra_steps = 5) {
  const Tokenizer tokenizer = byte_tokenizer(words);
  ScriptedEngine engine(spell(script));
  engine.lag = extra_steps;
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(params);
  engine.steps(80);
  return drain(*stream);
}

}  // namespace trireme::test
