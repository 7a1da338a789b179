// One request's way through the frontend, on a scripted engine.
#include "runtime/frontend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "base/error.h"
#include "tests/unit/scripted_engine.h"

namespace trireme::test {
namespace {

using namespace std::chrono_literals;

FrontendConfig config() {
  FrontendConfig config;
  config.vocab = kVocab;
  config.max_context = 64;
  config.eos_ids = {kEos};
  return config;
}

GenerateParams request(int32_t max_tokens = 8, const std::string& text = "hello") {
  GenerateParams params;
  params.text = text;
  params.sampling.max_tokens = max_tokens;
  return params;
}

struct Outcome {
  int32_t first = 0;  // the first token's index
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenInfo> logprobs, prompt_logprobs;
  Delta last;
  int ends = 0;
};

void take(const Delta& delta, Outcome& outcome) {
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

std::vector<Outcome> drain_all(OutputStream& stream, int outputs,
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

Outcome drain(OutputStream& stream) { return drain_all(stream, 1)[0]; }

// A generated text's outcome: `script` is what the engine would go on to say.
Outcome run(const GenerateParams& params, const std::string& script,
            const std::vector<std::string>& words = {}, int extra_steps = 5) {
  const Tokenizer tokenizer = byte_tokenizer(words);
  ScriptedEngine engine(spell(script));
  engine.lag = extra_steps;
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(params);
  engine.steps(80);
  return drain(*stream);
}

TEST(Frontend, StreamsTextAndTokensToTheLimit) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request());
  EXPECT_EQ(stream->prompt_tokens(), 5);
  EXPECT_EQ(stream->request_id().size(), 32u);
  EXPECT_FALSE(stream->poll().has_value());
  engine.step();
  ASSERT_TRUE(stream->wait(5s));
  const auto delta = stream->poll();
  ASSERT_TRUE(delta.has_value());
  EXPECT_EQ(delta->token_ids, std::vector<int32_t>{'a'});
  EXPECT_EQ(delta->text, "a");
  EXPECT_EQ(frontend.live_requests(), 1);
  engine.steps(10);
  const Outcome rest = drain(*stream);
  EXPECT_EQ(rest.text, "bcdefgh");
  EXPECT_EQ(rest.last.finish, FinishReason::kLength);
  EXPECT_EQ(rest.last.prompt_tokens, 5);
  EXPECT_EQ(rest.last.cached_tokens, 3);
  EXPECT_EQ(rest.last.completion_tokens, 8);
  EXPECT_EQ(frontend.live_requests(), 0);
}

TEST(Frontend, StopIdIsInTheIdsAndNotInTheText) {
  const Outcome outcome = run(request(20), "abc");
  EXPECT_EQ(outcome.text, "abc");
  EXPECT_EQ(outcome.ids, (std::vector<int32_t>{'a', 'b', 'c', kEos}));
  EXPECT_EQ(outcome.last.finish, FinishReason::kStop);
  EXPECT_EQ(outcome.last.stop_id, kEos);
  GenerateParams params = request(20);
  params.sampling.stop_ids = {'c'};
  const Outcome own = run(params, "abcd");
  EXPECT_EQ(own.text, "ab");
  EXPECT_EQ(own.last.stop_id, 'c');
}

TEST(Frontend, IgnoreEosGoesOn) {
  GenerateParams params = request(6);
  params.ignore_eos = true;
  params.skip_special_tokens = false;
  const Outcome outcome = run(params, "ab");
  EXPECT_EQ(outcome.text, "ab<eos><eos><eos><eos>");
  EXPECT_EQ(outcome.last.finish, FinishReason::kLength);
}

TEST(Frontend, StopStringCutsTextAndTokensWhateverTheEngineHasComputed) {
  GenerateParams params = request(40);
  params.stop = {"lo w", "zzz"};
  for (const int extra : {0, 1, 7}) {
    const Outcome outcome = run(params, "hello world", {}, extra);
    EXPECT_EQ(outcome.text, "hel");
    EXPECT_EQ(outcome.ids.size(), 7u);  // up to the w
    EXPECT_EQ(outcome.last.finish, FinishReason::kStop);
    EXPECT_EQ(outcome.last.stop_text, "lo w");
    EXPECT_EQ(outcome.last.stop_id, -1);
    EXPECT_EQ(outcome.last.completion_tokens, 7);
  }
  params.include_stop = true;
  EXPECT_EQ(run(params, "hello world").text, "hello w");
}

TEST(Frontend, StopStringTellsTheEngine) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine(spell("hello world and more"));
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(40);
  params.stop = {"lo"};
  const auto stream = frontend.generate(params);
  engine.steps(5);
  EXPECT_EQ(drain(*stream).text, "hel");
  for (int i = 0; i < 1000 && engine.aborts() == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(engine.aborts(), 1);
  engine.step();
  EXPECT_EQ(engine.live(), 0u);
}

TEST(Frontend, StopStringWithinOneTokenOfManyBytes) {
  const Tokenizer tokenizer = byte_tokenizer({"one. Two", "é!"});
  ScriptedEngine engine([](const Sequence& s) { return kWords + s.generated() % 2; });
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(40);
  params.stop = {". "};
  const auto stream = frontend.generate(params);
  engine.steps(3);
  const Outcome outcome = drain(*stream);
  EXPECT_EQ(outcome.text, "one");
  EXPECT_EQ(outcome.ids, std::vector<int32_t>{kWords});
}

TEST(Frontend, HeldBackTextComesWithTheEnd) {
  GenerateParams params = request(5);
  params.stop = {"lo world"};
  const Outcome outcome = run(params, "hello world");
  EXPECT_EQ(outcome.text, "hello");
  EXPECT_EQ(outcome.last.finish, FinishReason::kLength);
}

TEST(Frontend, MinTokensComeBeforeAnyStopString) {
  GenerateParams params = request(40);
  params.stop = {"ab"};
  params.sampling.min_tokens = 3;
  const Outcome outcome = run(params, "ababxab");
  EXPECT_EQ(outcome.text, "ababx");  // "ab" at 2 begins before the third token has ended
  EXPECT_EQ(outcome.last.completion_tokens, 7);
}

TEST(Frontend, UnfinishedUtf8IsHeldAndNeverBroken) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine(spell("\u00e9\u4e00x"));
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request(5));
  std::string text;
  for (int i = 0; i < 5; ++i) {
    engine.step();
    ASSERT_TRUE(stream->wait(5s));
    const auto delta = stream->poll();
    ASSERT_TRUE(delta.has_value());
    EXPECT_EQ(find_invalid_utf8(delta->text), std::nullopt);
    text += delta->text;
  }
  EXPECT_EQ(text, "\u00e9\u4e00");
  EXPECT_EQ(run(request(4), "\u00e9\u4e00").text, "\u00e9\uFFFD");  // cut by max_tokens
}

TEST(Frontend, TokensOfAPaddedVocabularyHaveNoText) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine([](const Sequence&) { return static_cast<int32_t>(kVocab - 1); });
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request(3));
  engine.steps(3);
  EXPECT_EQ(drain(*stream).text, "");
}

TEST(Frontend, EchoComesFirst) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(2);
  params.echo = true;
  params.n = 2;
  const auto stream = frontend.generate(params);
  const auto echo = stream->poll();
  ASSERT_TRUE(echo.has_value());
  EXPECT_EQ(echo->token_index, -5);
  EXPECT_EQ(echo->token_ids, (std::vector<int32_t>{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(echo->text, "hello");
  engine.steps(2);
  const auto outcomes = drain_all(*stream, 2);
  EXPECT_EQ(outcomes[echo->output].text, echo->output == 0 ? "ab" : "bc");
  EXPECT_EQ(outcomes[1 - echo->output].text, echo->output == 0 ? "hellobc" : "helloab");
}

TEST(Frontend, ScoringNeedsNoTokens) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(0);
  const auto nothing = frontend.generate(params);  // not even the engine
  EXPECT_EQ(drain(*nothing).last.finish, FinishReason::kLength);
  EXPECT_TRUE(engine.seen().empty());
  params.sampling.prompt_logprobs = 2;
  params.echo = true;
  const auto stream = frontend.generate(params);
  EXPECT_FALSE(stream->poll().has_value());  // the echo waits for the first delta to be whole
  engine.step();
  const Outcome outcome = drain(*stream);
  ASSERT_EQ(outcome.prompt_logprobs.size(), 4u);
  EXPECT_EQ(outcome.prompt_logprobs[3].token, 'o');
  EXPECT_EQ(outcome.prompt_logprobs[3].top.size(), 2u);
  EXPECT_EQ(outcome.text, "hello");
  EXPECT_EQ(outcome.last.completion_tokens, 0);
}

TEST(Frontend, DeltasCanBeBounded) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(20);
  params.sampling.logprobs = 3;
  params.sampling.prompt_logprobs = 1;
  params.echo = true;
  const auto stream = frontend.generate(params);
  engine.steps(20);
  Outcome outcome;
  int deltas = 0;
  while (!stream->ended()) {
    ASSERT_TRUE(stream->wait(5s));
    while (const auto delta = stream->poll(4)) {
      EXPECT_LE(delta->token_ids.size() + delta->prompt_logprobs.size(), 4u);
      EXPECT_LE(delta->logprobs.size(), 1u);
      take(*delta, outcome);
      ++deltas;
    }
  }
  EXPECT_GE(deltas, 22);
  EXPECT_EQ(outcome.ids.size(), 20u);
  EXPECT_EQ(outcome.logprobs.size(), 20u);
  EXPECT_EQ(outcome.prompt_logprobs.size(), 4u);
  EXPECT_EQ(outcome.text, "helloabcdefghijklmnopqrst");
}

TEST(Frontend, OutputsOfOneRequestAreApart) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(4);
  params.n = 3;
  const auto stream = frontend.generate(params);
  engine.steps(4);
  const auto outcomes = drain_all(*stream, 3);
  EXPECT_EQ(outcomes[0].text, "abcd");
  EXPECT_EQ(outcomes[1].text, "bcde");
  EXPECT_EQ(outcomes[2].text, "cdef");
  const auto seen = engine.seen();
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(std::set<SequenceId>({seen[0].id, seen[1].id, seen[2].id}).size(), 3u);
  EXPECT_EQ(seen[0].group, seen[2].group);
  EXPECT_EQ(seen[2].output_index, 2u);
}

TEST(Frontend, SeedIsDrawnOrKept) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request();
  const auto one = frontend.generate(params);
  const auto two = frontend.generate(params);
  EXPECT_NE(one->seed(), two->seed());
  EXPECT_EQ(engine.seen()[0].sampling.seed, one->seed());
  params.sampling.seed = 7;
  params.seed_given = true;
  EXPECT_EQ(frontend.generate(params)->seed(), 7u);
}

TEST(Frontend, SaltsSeparateAndAgree) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  for (const char* salt : {"", "one", "one", "two"}) {
    GenerateParams params = request();
    params.cache_salt = salt;
    frontend.generate(params);
  }
  const auto seen = engine.seen();
  EXPECT_EQ(seen[0].prefix_salt, 0u);
  EXPECT_NE(seen[1].prefix_salt, 0u);
  EXPECT_EQ(seen[1].prefix_salt, seen[2].prefix_salt);
  EXPECT_NE(seen[1].prefix_salt, seen[3].prefix_salt);
}

TEST(Frontend, ContextClipsMaxTokens) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request(1000, std::string(60, 'x')));
  engine.steps(10);
  const Outcome outcome = drain(*stream);
  EXPECT_EQ(outcome.ids.size(), 4u);
  EXPECT_EQ(outcome.last.finish, FinishReason::kLength);
}

// ---- resuming

TEST(Frontend, ResumedTextGoesOnExactlyFromAnyPosition) {
  const std::string script = "na\u00efve \u4e00\u4e8c END of it";
  GenerateParams params = request(40);
  params.stop = {"END"};
  const Outcome whole = run(params, script);
  const Tokenizer tokenizer = byte_tokenizer();
  for (size_t cut = 1; cut < whole.ids.size(); ++cut) {
    ScriptedEngine engine(spell(script));
    Frontend frontend(engine, &tokenizer, config());
    // What a client had that was cut off after `cut` tokens.
    const auto first = frontend.generate(params);
    engine.steps(static_cast<int>(cut));
    std::string text;
    std::vector<int32_t> ids;
    while (ids.size() < cut) {
      ASSERT_TRUE(first->wait(5s));
      const auto delta = first->poll();
      text += delta->text;
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
    }
    GenerateParams resumed = params;
    resumed.prior_token_ids = ids;
    resumed.seed_given = true;
    const auto stream = frontend.generate(resumed);
    engine.steps(60);
    Delta delta;
    while (!stream->ended()) {
      ASSERT_TRUE(stream->wait(5s));
      while (const auto next = stream->poll()) {
        EXPECT_GE(next->token_index, static_cast<int32_t>(cut));
        text += next->text;
        ids.insert(ids.end(), next->token_ids.begin(), next->token_ids.end());
        delta = *next;
      }
    }
    EXPECT_EQ(text, whole.text) << "cut at " << cut;
    EXPECT_EQ(ids, whole.ids);
    EXPECT_EQ(delta.stop_text, "END");
    EXPECT_EQ(delta.completion_tokens, static_cast<int32_t>(whole.ids.size()));
  }
}

TEST(Frontend, PriorTokensThatEndTheOutputEndItAtOnce) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(4);
  params.seed_given = true;
  params.stop = {"bc"};
  const auto ends = [&](std::vector<int32_t> prior) {
    params.prior_token_ids = std::move(prior);
    const auto stream = frontend.generate(params);
    return drain(*stream).last;
  };
  EXPECT_EQ(ends({'x', 'b', 'c'}).stop_text, "bc");
  EXPECT_EQ(ends({'x', kEos}).stop_id, kEos);
  EXPECT_EQ(ends({'x', 'y', 'z', 'x'}).finish, FinishReason::kLength);
  EXPECT_TRUE(engine.seen().empty());
  EXPECT_EQ(frontend.live_requests(), 0);
  EXPECT_THROW(ends({'b', 'c', 'x'}), Error);
  EXPECT_THROW(ends({kEos, 'x'}), Error);
}

// ---- attaching and ending

TEST(Frontend, AttachReadsFromAnyIndexWhileLiveAndAfter) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(10);
  params.request_id = "mine";
  const auto first = frontend.generate(params);
  engine.steps(4);
  while (true) {  // until all four have arrived
    try {
      frontend.attach("mine", {4});
      break;
    } catch (const Error&) {
      std::this_thread::sleep_for(1ms);
    }
  }
  const auto live = frontend.attach("mine", {2});
  engine.steps(10);
  EXPECT_EQ(drain(*live).text, "cdefghij");
  const auto after = frontend.attach("mine", {});
  EXPECT_EQ(drain(*after).text, "abcdefghij");
  const auto at_end = frontend.attach("mine", {10});
  const Outcome end = drain(*at_end);
  EXPECT_EQ(end.text, "");
  EXPECT_EQ(end.last.completion_tokens, 10);
  EXPECT_EQ(drain(*first).text, "abcdefghij");
  EXPECT_THROW(frontend.attach("mine", {11}), Error);
  EXPECT_THROW(frontend.attach("mine", {-1}), Error);
  EXPECT_THROW(frontend.attach("mine", {0, 0}), Error);
  EXPECT_THROW(frontend.attach("nobody", {}), Error);
}

TEST(Frontend, RecordsGoAfterTheirTimeAndOverTheLimit) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  FrontendConfig short_lived = config();
  short_lived.keep = 50ms;
  {
    Frontend frontend(engine, &tokenizer, short_lived);
    GenerateParams params = request(1);
    params.request_id = "a";
    const auto stream = frontend.generate(params);
    EXPECT_THROW(frontend.generate(params), Error);  // the id is in use
    engine.step();
    drain(*stream);
    for (int i = 0; i < 2000 && frontend.record_bytes() > 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(frontend.record_bytes(), 0);
    EXPECT_THROW(frontend.attach("a", {}), Error);
    frontend.generate(params);  // the id is free again
    engine.step();
  }
  FrontendConfig small = config();
  small.max_ended_bytes = 20'000;
  Frontend frontend(engine, &tokenizer, small);
  for (int i = 0; i < 100; ++i) {
    GenerateParams params = request(1);
    params.request_id = std::to_string(i);
    const auto stream = frontend.generate(params);
    engine.step();
    drain(*stream);
    EXPECT_LE(frontend.record_bytes(), 20'000);
  }
  EXPECT_THROW(frontend.attach("0", {}), Error);
  EXPECT_EQ(drain(*frontend.attach("99", {})).text, "a");
}

TEST(Frontend, AbortEndsAtOnceAndOnce) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(30);
  params.request_id = "a";
  params.n = 2;
  const auto stream = frontend.generate(params);
  engine.steps(3);
  EXPECT_TRUE(frontend.abort("a"));
  EXPECT_FALSE(frontend.abort("a"));
  EXPECT_FALSE(frontend.abort("b"));
  for (const Outcome& outcome : drain_all(*stream, 2)) {
    EXPECT_EQ(outcome.last.finish, FinishReason::kAborted);
  }
  EXPECT_EQ(frontend.live_requests(), 0);
  engine.step();
  EXPECT_EQ(engine.live(), 0u);
}

TEST(Frontend, EngineFailureEndsWithAnError) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine([](const Sequence& s) { return s.generated() < 2 ? 'a' : -1; });
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request());
  engine.steps(3);
  const Outcome outcome = drain(*stream);
  EXPECT_EQ(outcome.text, "aa");
  EXPECT_EQ(outcome.last.finish, FinishReason::kError);
  EXPECT_NE(outcome.last.error, "");
}

TEST(Frontend, DestroyedFrontendEndsItsStreams) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  std::unique_ptr<OutputStream> stream;
  {
    Frontend frontend(engine, &tokenizer, config());
    stream = frontend.generate(request());
  }
  EXPECT_EQ(drain(*stream).last.finish, FinishReason::kError);
  engine.step();  // no sink any more
}

TEST(Frontend, FullQueueAndStoppingAreToldApart) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine(nullptr, 1);
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request();
  params.request_id = "again";
  const auto first = frontend.generate(request());
  const auto code = [&] {
    try {
      frontend.generate(params);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code(), ErrorCode::kResourceExhausted);
  EXPECT_EQ(code(), ErrorCode::kResourceExhausted);  // and not "id in use"
  EXPECT_EQ(frontend.live_requests(), 1);
  engine.refuse_all();
  EXPECT_EQ(code(), ErrorCode::kUnavailable);
  frontend.stop_accepting();
  EXPECT_EQ(code(), ErrorCode::kUnavailable);
}

TEST(Frontend, ArmCallsOnceAndAtOnceIfThereIsSomething) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  const auto stream = frontend.generate(request());
  std::atomic<int> calls{0};
  stream->arm([&] { ++calls; });
  EXPECT_EQ(calls, 0);
  engine.steps(3);
  for (int i = 0; i < 5000 && calls == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(calls, 1);
  stream->arm([&] { ++calls; });
  EXPECT_EQ(calls, 2);
}

// Aborts, stop strings and the engine's own ends race; every output ends once, none is lost.
TEST(Frontend, EveryOutputEndsOnceInEveryRace) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  engine.lag = 2;
  engine.start(50us);
  Frontend frontend(engine, &tokenizer, config());
  std::vector<std::thread> clients;
  std::atomic<int> ends{0};
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 60; ++i) {
        GenerateParams params = request(5 + (i * 7 + client) % 20);
        params.request_id = std::to_string(client) + "-" + std::to_string(i);
        params.n = 1 + i % 3;
        if (i % 2 == 0) params.stop = {"hi"};
        const auto stream = frontend.generate(params);
        std::thread aborter([&] {
          if (i % 3 != 0) return;
          std::this_thread::sleep_for(std::chrono::microseconds(100 * (i % 11)));
          frontend.abort(params.request_id);
        });
        for (const Outcome& outcome : drain_all(*stream, params.n)) ends += outcome.ends;
        aborter.join();
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(ends, 8 * 120);
  EXPECT_EQ(frontend.live_requests(), 0);
  for (int i = 0; i < 2000 && engine.live() > 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(engine.live(), 0u);
}

}  // namespace
}  // namespace trireme::test
