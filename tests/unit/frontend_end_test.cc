// Requests that are resumed, attached to, aborted, refused, and what their records leave.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/unit/frontend_fixture.h"

namespace trireme::test {
namespace {

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
    auto stream = frontend.generate(params);
    EXPECT_THROW(frontend.generate(params), Error);  // the id is in use
    engine.step();
    drain(*stream);
    const auto gone = [&] {
      try {
        frontend.attach("a", {});
        return false;
      } catch (const Error&) {
        return true;
      }
    };
    for (int i = 0; i < 2000 && !gone(); ++i) std::this_thread::sleep_for(1ms);
    EXPECT_TRUE(gone());
    EXPECT_GT(frontend.record_bytes(), 0);  // its reader holds it
    stream.reset();
    EXPECT_EQ(frontend.record_bytes(), 0);
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
  // A reader may see an end a moment before the store and the engine have let go of it.
  const auto left = [&] { return frontend.live_requests() > 0 || engine.live() > 0; };
  for (int i = 0; i < 2000 && left(); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(frontend.live_requests(), 0);
  EXPECT_EQ(engine.live(), 0u);
}

}  // namespace
}  // namespace trireme::test
