// One request's way through the frontend, on a scripted engine.
#include "runtime/frontend.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/unit/frontend_fixture.h"

namespace trireme::test {
namespace {

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
  expect_none_live(frontend);
}

// However late they are read.
TEST(Frontend, TellsWhenTheTokensWereKnown) {
  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  Frontend frontend(engine, &tokenizer, config());
  GenerateParams params = request(6);
  const auto whole = frontend.generate(params);
  engine.step();
  params.prior_token_ids = {'a', 'b'};
  params.seed_given = true;
  const auto resumed = frontend.generate(params);
  engine.steps(8);
  const std::chrono::steady_clock::time_point zero;
  const Delta first = drain(*whole).last;
  EXPECT_EQ(first.first_token - zero, 1s);
  EXPECT_EQ(first.last_token - zero, 6s);
  const Delta second = drain(*resumed).last;
  EXPECT_EQ(second.first_token - zero, 2s);
  EXPECT_EQ(second.last_token - zero, 5s);
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

}  // namespace
}  // namespace trireme::test
