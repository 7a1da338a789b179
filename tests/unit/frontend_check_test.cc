// Every field of a request against its limit: the message names the field.
#include "runtime/frontend_check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "runtime/frontend.h"
#include "tests/unit/scripted_engine.h"

namespace trireme::test {
namespace {

class FrontendCheck : public ::testing::Test {
 protected:
  using Change = std::function<void(GenerateParams&)>;

  FrontendCheck() : tokenizer_(byte_tokenizer()), frontend_(engine_, &tokenizer_, config()) {}

  static FrontendConfig config() {
    FrontendConfig config;
    config.vocab = kVocab;
    config.max_context = 64;
    config.eos_ids = {kEos};
    return config;
  }

  static GenerateParams good() {
    GenerateParams params;
    params.text = "hello";
    return params;
  }

  std::string refusal(const Change& change) {
    GenerateParams params = good();
    change(params);
    try {
      frontend_.generate(params);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
      return error.what();
    }
    return "accepted";
  }

  void expect_refused(const std::string& says, const Change& change) {
    const std::string message = refusal(change);
    EXPECT_NE(message.find(says), std::string::npos) << message << " should say " << says;
    EXPECT_NE(message, "accepted");
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }

  void expect_accepted(const Change& change) { EXPECT_EQ(refusal(change), "accepted"); }

  const Tokenizer tokenizer_;
  ScriptedEngine engine_;
  Frontend frontend_;
};

TEST_F(FrontendCheck, FloatsAreFiniteAndInRange) {
  struct Field {
    const char* name;
    float SamplingParams::*member;
    float low, high;     // the ends that are allowed
    float below, above;  // just outside
  };
  using S = SamplingParams;
  for (const Field& f :
       {Field{"temperature", &S::temperature, 0.0f, 100.0f, -0.1f, 100.1f},
        Field{"top_p", &S::top_p, 0.01f, 1.0f, 0.0f, 1.01f},
        Field{"min_p", &S::min_p, 0.0f, 1.0f, -0.01f, 1.01f},
        Field{"repetition_penalty", &S::repetition_penalty, 0.001f, 100.0f, 0.0f, 101.0f},
        Field{"presence_penalty", &S::presence_penalty, -2.0f, 2.0f, -2.1f, 2.1f},
        Field{"frequency_penalty", &S::frequency_penalty, -2.0f, 2.0f, -2.1f, 2.1f}}) {
    const float inf = std::numeric_limits<float>::infinity();
    for (const float bad : {std::nanf(""), inf, -inf, f.below, f.above}) {
      expect_refused(f.name, [&](GenerateParams& p) { p.sampling.*f.member = bad; });
    }
    for (const float fine : {f.low, f.high}) {
      expect_accepted([&](GenerateParams& p) { p.sampling.*f.member = fine; });
    }
  }
  expect_refused("temperature", [](GenerateParams& p) { p.sampling.temperature = 1e-9f; });
}

TEST_F(FrontendCheck, CountsAreInRange) {
  expect_refused("top_k", [](GenerateParams& p) { p.sampling.top_k = -1; });
  expect_refused("max_tokens", [](GenerateParams& p) { p.sampling.max_tokens = -1; });
  expect_refused("min_tokens", [](GenerateParams& p) { p.sampling.min_tokens = -1; });
  expect_refused("min_tokens", [](GenerateParams& p) { p.sampling.min_tokens = 17; });
  expect_refused("n is 0", [](GenerateParams& p) { p.n = 0; });
  expect_refused("n is 129", [](GenerateParams& p) { p.n = 129; });
  expect_refused("logprobs", [](GenerateParams& p) { p.sampling.logprobs = 21; });
  expect_refused("prompt_logprobs", [](GenerateParams& p) { p.sampling.prompt_logprobs = 21; });
  expect_accepted([](GenerateParams& p) { p.sampling.logprobs = 20; });
}

TEST_F(FrontendCheck, TokenIdsAreInTheVocabulary) {
  const auto vocab = static_cast<int32_t>(kVocab);
  for (const int32_t bad : {-1, vocab, INT32_MAX, INT32_MIN}) {
    expect_refused("allowed_tokens[1]", [=](GenerateParams& p) {
      p.sampling.allowed_tokens = {1, bad};
    });
    expect_refused("banned_tokens[0]",
                   [=](GenerateParams& p) { p.sampling.banned_tokens = {bad}; });
    expect_refused("stop_ids[0]", [=](GenerateParams& p) { p.sampling.stop_ids = {bad}; });
    expect_refused("logit_bias", [=](GenerateParams& p) { p.sampling.logit_bias = {{bad, 1.0f}}; });
    expect_refused("token_ids[2]", [=](GenerateParams& p) {
      p.text.reset();
      p.token_ids = {1, 2, bad};
    });
    expect_refused("prior_token_ids[0]", [=](GenerateParams& p) {
      p.prior_token_ids = {bad};
      p.seed_given = true;
    });
  }
  expect_refused("logit_bias", [](GenerateParams& p) {
    p.sampling.logit_bias = {{1, std::nanf("")}};
  });
  expect_refused("banned_tokens", [](GenerateParams& p) {
    p.sampling.allowed_tokens = {5, 6};
    p.sampling.banned_tokens = {6, 5};
  });
  expect_refused("banned_tokens", [=](GenerateParams& p) {
    for (int32_t id = 0; id < vocab; ++id) p.sampling.banned_tokens.push_back(id);
  });
  expect_refused("banned_tokens", [](GenerateParams& p) {
    p.sampling.banned_tokens.assign(kMaxTokenListSize + 1, 1);
  });
  expect_refused("stop_ids",
                 [](GenerateParams& p) { p.sampling.stop_ids.assign(kMaxStopIds + 1, 1); });
}

TEST_F(FrontendCheck, TokenListsAreSortedAndHeldOnce) {
  expect_accepted([](GenerateParams& p) {
    p.n = 128;
    p.sampling.allowed_tokens.assign(kMaxTokenListSize, 9);
    p.sampling.allowed_tokens[5] = 3;
    p.sampling.banned_tokens = {8, 7, 8, 7};
    p.sampling.stop_ids = {5, 4, 5};
    p.ignore_eos = true;
  });
  const auto seen = engine_.seen();
  ASSERT_EQ(seen.size(), 128u);
  for (const Sequence& sequence : seen) {
    EXPECT_EQ(sequence.sampling.allowed_tokens, (std::vector<int32_t>{3, 9}));
    EXPECT_EQ(sequence.sampling.banned_tokens, (std::vector<int32_t>{7, 8}));
    EXPECT_EQ(sequence.sampling.stop_ids, (std::vector<int32_t>{4, 5}));
  }
}

TEST(TokenLists, AreBoundedForAllOutputsTogether) {
  GenerateParams params;
  for (int32_t id = 0; id < 150'000; ++id) params.sampling.banned_tokens.push_back(id);
  params.sampling.logit_bias = {{1, 1.0f}};
  params.n = 27;
  EXPECT_NO_THROW(tidy_token_lists(params));
  params.n = 28;
  try {
    tidy_token_lists(params);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(text.find("banned_tokens has 150000"), std::string::npos) << text;
    EXPECT_NE(text.find("n = 28"), std::string::npos) << text;
    EXPECT_NE(text.find(std::to_string(kMaxTokenListBytes)), std::string::npos) << text;
  }
}

TEST_F(FrontendCheck, PromptIsThereAndFits) {
  expect_refused("prompt", [](GenerateParams& p) { p.text.reset(); });
  expect_refused("prompt", [](GenerateParams& p) { p.text = ""; });
  expect_refused("prompt", [](GenerateParams& p) { p.token_ids = {1}; });  // both
  expect_refused("prompt has 65 tokens: the context limit is 64",
                 [](GenerateParams& p) { p.text = std::string(65, 'a'); });
  expect_refused("64 tokens", [](GenerateParams& p) { p.text = std::string(64, 'a'); });
  expect_accepted([](GenerateParams& p) { p.text = std::string(63, 'a'); });
  expect_accepted([](GenerateParams& p) {
    p.text = std::string(64, 'a');
    p.sampling.max_tokens = 0;
  });
  // Far over: refused before it is tokenized.
  expect_refused("10000000 bytes",
                 [](GenerateParams& p) { p.text = std::string(10'000'000, 'a'); });
}

TEST_F(FrontendCheck, TextsAreUtf8) {
  expect_refused("text is not UTF-8: byte 2", [](GenerateParams& p) { p.text = "ab\xff"; });
  expect_refused("stop is not UTF-8", [](GenerateParams& p) { p.stop = {"a\xc3"}; });
  expect_refused("request_id is not UTF-8", [](GenerateParams& p) { p.request_id = "\xff"; });
}

TEST_F(FrontendCheck, StringsAreBounded) {
  expect_refused("empty", [](GenerateParams& p) { p.stop = {"a", ""}; });
  expect_refused("stop", [](GenerateParams& p) { p.stop = {std::string(1025, 'a')}; });
  expect_refused("stop", [](GenerateParams& p) { p.stop.assign(17, "a"); });
  expect_accepted([](GenerateParams& p) { p.stop.assign(16, std::string(1024, 'a')); });
  expect_refused("request_id", [](GenerateParams& p) { p.request_id = std::string(129, 'a'); });
  expect_accepted([](GenerateParams& p) { p.request_id = std::string(128, 'a'); });
  expect_refused("cache_salt", [](GenerateParams& p) { p.cache_salt = std::string(257, 'a'); });
}

TEST_F(FrontendCheck, PriorTokensNeedOneOutputASeedAndRoom) {
  const auto resumed = [](GenerateParams& p) {
    p.prior_token_ids = {1, 2, 3};
    p.seed_given = true;
  };
  expect_accepted(resumed);
  expect_refused("n is 2", [&](GenerateParams& p) { resumed(p), p.n = 2; });
  expect_refused("seed", [&](GenerateParams& p) { resumed(p), p.seed_given = false; });
  expect_refused("max_tokens", [&](GenerateParams& p) { resumed(p), p.sampling.max_tokens = 2; });
  expect_refused("prior_token_ids",
                 [&](GenerateParams& p) { resumed(p), p.text = std::string(62, 'a'); });
}

TEST_F(FrontendCheck, RefusalsLoseNothing) {
  for (int i = 0; i < 100; ++i) {
    refusal([](GenerateParams& p) { p.sampling.top_p = 2.0f, p.request_id = "same"; });
  }
  EXPECT_EQ(frontend_.live_requests(), 0);
  EXPECT_TRUE(engine_.seen().empty());
  expect_accepted([](GenerateParams& p) { p.request_id = "same"; });
}

TEST(FrontendWithoutTokenizer, TakesTokenIdsOnly) {
  ScriptedEngine engine;
  FrontendConfig config;
  config.vocab = kVocab;
  Frontend frontend(engine, nullptr, config);
  const auto refused = [&](const std::function<void(GenerateParams&)>& change,
                           const std::string& says) {
    GenerateParams params;
    params.token_ids = {1, 2};
    change(params);
    try {
      frontend.generate(params);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
  };
  refused([](GenerateParams& p) { p.text = "a", p.token_ids.clear(); }, "text");
  refused([](GenerateParams& p) { p.stop = {"a"}; }, "stop");
  EXPECT_THROW(frontend.tokenize("a", true), Error);
  EXPECT_THROW(frontend.detokenize({1}, true), Error);
  GenerateParams params;
  params.token_ids = {1, 2};
  params.sampling.max_tokens = 2;
  params.echo = true;
  const auto stream = frontend.generate(params);
  engine.steps(2);
  std::vector<int32_t> ids;
  while (!stream->ended()) {
    ASSERT_TRUE(stream->wait(std::chrono::seconds(5)));
    while (const auto delta = stream->poll()) {
      EXPECT_EQ(delta->text, "");
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
    }
  }
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, 'a', 'b'}));
}

}  // namespace
}  // namespace trireme::test
