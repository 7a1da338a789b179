// The calls of a real server on a loopback port: every field, every refusal, every way to end.
#include "runtime/coordinator.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>

#include "clients/client_channel.h"
#include "runtime/coordinator_status.h"
#include "tests/unit/coordinator_fixture.h"
#include "trireme/v1/trireme.grpc.pb.h"

namespace trireme::test {
namespace {

TEST(Coordinator, StreamsARequest) {
  Service service;
  service.engine.start(100us);
  v1::GenerateRequest wire = request();
  wire.set_request_id("mine");
  wire.mutable_sampling()->set_seed(9);
  const Outcome outcome = drain(service.client->generate(wire));
  EXPECT_EQ(outcome.accepted.request_id(), "mine");
  EXPECT_EQ(outcome.accepted.seed(), 9u);
  EXPECT_EQ(outcome.accepted.prompt_tokens(), 5);
  EXPECT_EQ(outcome.text, "abcde");
  EXPECT_EQ(outcome.ids, (std::vector<int32_t>{'a', 'b', 'c', 'd', 'e'}));
  EXPECT_EQ(outcome.ends, 1);
  EXPECT_EQ(outcome.last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome.last.usage().prompt_tokens(), 5);
  EXPECT_EQ(outcome.last.usage().cached_tokens(), 3);
  EXPECT_EQ(outcome.last.usage().completion_tokens(), 5);
}

TEST(Coordinator, EveryFieldArrives) {
  Service service;
  v1::GenerateRequest wire;
  for (const char c : std::string("hey")) wire.mutable_token_ids()->add_ids(c);
  auto* sampling = wire.mutable_sampling();
  sampling->set_temperature(0.25f);
  sampling->set_top_k(3);
  sampling->set_top_p(0.5f);
  sampling->set_min_p(0.125f);
  sampling->set_repetition_penalty(1.5f);
  sampling->set_presence_penalty(-1.0f);
  sampling->set_frequency_penalty(1.0f);
  (*sampling->mutable_logit_bias())[7] = 2.5f;
  sampling->add_allowed_tokens(8);
  sampling->add_banned_tokens(9);
  sampling->set_seed(10);
  wire.mutable_stop()->set_max_tokens(4);
  wire.mutable_stop()->set_min_tokens(2);
  wire.mutable_stop()->add_stop_ids(11);
  wire.mutable_logprobs()->set_logprobs(2);
  wire.mutable_logprobs()->set_prompt_logprobs(1);
  wire.set_n(2);
  wire.set_priority(-4);
  service.engine.start(100us);
  const Outcome outcome = drain(service.client->generate(wire));
  EXPECT_EQ(outcome.ends, 2);
  const Sequence seen = service.engine.seen().at(1);
  EXPECT_EQ(seen.tokens, (std::vector<int32_t>{'h', 'e', 'y'}));
  EXPECT_EQ(seen.priority, -4);
  EXPECT_EQ(seen.output_index, 1u);
  const SamplingParams& s = seen.sampling;
  EXPECT_EQ(s.temperature, 0.25f);
  EXPECT_EQ(s.top_k, 3);
  EXPECT_EQ(s.top_p, 0.5f);
  EXPECT_EQ(s.min_p, 0.125f);
  EXPECT_EQ(s.repetition_penalty, 1.5f);
  EXPECT_EQ(s.presence_penalty, -1.0f);
  EXPECT_EQ(s.frequency_penalty, 1.0f);
  EXPECT_EQ(s.logit_bias, (std::vector<std::pair<int32_t, float>>{{7, 2.5f}}));
  EXPECT_EQ(s.allowed_tokens, std::vector<int32_t>{8});
  EXPECT_EQ(s.banned_tokens, std::vector<int32_t>{9});
  EXPECT_EQ(s.seed, 10u);
  EXPECT_EQ(s.max_tokens, 4);
  EXPECT_EQ(s.min_tokens, 2);
  EXPECT_EQ(s.stop_ids, (std::vector<int32_t>{11, kEos}));
  EXPECT_EQ(s.logprobs, 2);
  EXPECT_EQ(s.prompt_logprobs, 1);
  size_t logprobs = 0, prompt_logprobs = 0;
  for (const auto& delta : outcome.deltas) {
    logprobs += delta.logprobs_size();
    prompt_logprobs += delta.prompt_logprobs_size();
    for (const auto& one : delta.logprobs()) {
      EXPECT_EQ(one.top_size(), 2);
      EXPECT_EQ(one.chosen().token(), std::string(1, static_cast<char>(one.chosen().token_id())));
      EXPECT_EQ(one.chosen().logprob(), -0.5f);
    }
  }
  EXPECT_EQ(logprobs, 8u);
  EXPECT_EQ(prompt_logprobs, 4u);
}

TEST(Coordinator, UnsetFieldsTakeTheDefaultsOfTheWire) {
  Service service;
  v1::GenerateRequest wire;
  wire.set_text("a");
  service.engine.start(100us);
  EXPECT_EQ(drain(service.client->generate(wire)).ids.size(), 16u);
  const SamplingParams s = service.engine.seen().at(0).sampling;
  EXPECT_EQ(s.temperature, 1.0f);
  EXPECT_EQ(s.top_p, 1.0f);
  EXPECT_EQ(s.repetition_penalty, 1.0f);
  EXPECT_EQ(s.logprobs, -1);
}

TEST(Coordinator, UnaryCalls) {
  Service service;
  EXPECT_EQ(service.client->server_info().version(), "1.2.3");
  EXPECT_EQ(service.client->server_info().kv_token_capacity(), 1600);
  EXPECT_EQ(service.client->model_info().name(), "letters");
  EXPECT_EQ(service.client->model_info().max_context(), 10'000);
  EXPECT_TRUE(service.client->model_info().has_tokenizer());
  EXPECT_EQ(service.client->tokenize("hi"), (std::vector<int32_t>{'h', 'i'}));
  EXPECT_EQ(service.client->detokenize({'h', kEos, 'i'}), "hi");
  EXPECT_EQ(service.client->detokenize({'h', kEos, 'i'}, false), "h<eos>i");
  EXPECT_FALSE(service.client->abort("nobody"));
  auto stream = service.client->generate(request());
  v1::GenerateEvent event;
  ASSERT_TRUE(stream.next(event));
  EXPECT_EQ(service.client->load().requests(), 1);
  EXPECT_EQ(service.client->load().running(), 1);
  EXPECT_TRUE(service.client->abort(event.accepted().request_id()));
  Outcome outcome;
  while (stream.next(event)) take(event, outcome);
  EXPECT_EQ(outcome.last.finish_reason(), v1::FINISH_REASON_ABORTED);
  EXPECT_EQ(service.client->load().requests(), 0);
}

TEST(Coordinator, RefusalsAreStatuses) {
  Service service({.capacity = 1});
  const auto refused = [&](const v1::GenerateRequest& wire) {
    return error_of([&] { drain(service.client->generate(wire)); });
  };
  v1::GenerateRequest bad = request();
  bad.mutable_sampling()->set_temperature(std::nanf(""));
  EXPECT_EQ(refused(bad).code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(std::string(refused(bad).what()).find("temperature"), std::string::npos);
  bad = request();
  bad.mutable_logprobs()->set_logprobs(-1);
  EXPECT_NE(std::string(refused(bad).what()).find("logprobs"), std::string::npos);
  EXPECT_NE(std::string(refused(v1::GenerateRequest()).what()).find("prompt"), std::string::npos);

  v1::GenerateRequest first = request();
  first.set_request_id("one");
  auto stream = service.client->generate(first);
  v1::GenerateEvent event;
  ASSERT_TRUE(stream.next(event));
  EXPECT_EQ(refused(first).code(), ErrorCode::kAlreadyExists);
  auto full = service.client->generate(request());
  EXPECT_EQ(error_of([&] { full.next(event); }).code(), ErrorCode::kResourceExhausted);
  EXPECT_EQ(full.retry_after(), 1000ms);

  v1::AttachRequest attach;
  attach.set_request_id("nobody");
  const auto attached = [&] { return error_of([&] { drain(service.client->attach(attach)); }); };
  EXPECT_EQ(attached().code(), ErrorCode::kNotFound);
  attach.set_request_id("one");
  attach.add_from_token_index(1);
  EXPECT_EQ(attached().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { service.client->detokenize({-1}); }).code(),
            ErrorCode::kInvalidArgument);
  service.engine.refuse_all();
  EXPECT_EQ(refused(request()).code(), ErrorCode::kUnavailable);
}

TEST(Coordinator, CallsThatNeedATokenizerSaySo) {
  Service service({.tokenizer = false});
  EXPECT_FALSE(service.client->model_info().has_tokenizer());
  EXPECT_EQ(error_of([&] { service.client->tokenize("a"); }).code(),
            ErrorCode::kFailedPrecondition);
  EXPECT_EQ(error_of([&] { drain(service.client->generate(request())); }).code(),
            ErrorCode::kInvalidArgument);
}

TEST(Coordinator, StatusesAndErrorsMapBothWays) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    const auto error = static_cast<ErrorCode>(code);
    EXPECT_EQ(to_error_code(to_status_code(error)), error) << to_string(error);
  }
}

TEST(Coordinator, BrokenUtf8IsNamed) {
  Service service;
  v1::GenerateRequest wire = request(5, "ab\xff");
  const Error text = error_of([&] { drain(service.client->generate(wire)); });
  EXPECT_EQ(text.code(), ErrorCode::kInvalidArgument);
  EXPECT_STREQ(text.what(), "text is not UTF-8: byte 2 is wrong");
  wire = request();
  wire.mutable_stop()->add_stop("\xc3(");
  const Error stop = error_of([&] { drain(service.client->generate(wire)); });
  EXPECT_STREQ(stop.what(), "stop.stop is not UTF-8: byte 0 is wrong");
  EXPECT_EQ(error_of([&] { service.client->tokenize("\xff"); }).code(),
            ErrorCode::kInvalidArgument);
}

TEST(Coordinator, CancelAndDeadlineAbort) {
  Service service;
  v1::GenerateEvent event;
  {
    auto stream = service.client->generate(request(1000));
    ASSERT_TRUE(stream.next(event));
    service.engine.steps(2);
    stream.cancel();
    EXPECT_EQ(error_of([&] {
                while (stream.next(event)) {
                }
              }).code(),
              ErrorCode::kCancelled);
  }
  EXPECT_TRUE(eventually([&] { return service.frontend->live_requests() == 0; }));
  service.engine.step();
  EXPECT_EQ(service.engine.live(), 0u);

  auto late = service.client->generate(request(1000), 100ms);
  ASSERT_TRUE(late.next(event));
  EXPECT_EQ(error_of([&] {
              while (late.next(event)) {
              }
            }).code(),
            ErrorCode::kDeadlineExceeded);
  EXPECT_TRUE(eventually([&] { return service.frontend->live_requests() == 0; }));
  service.engine.step();
  EXPECT_EQ(service.engine.live(), 0u);
}

TEST(Coordinator, GoesOnAfterDisconnectIfAsked) {
  Service service;
  v1::GenerateRequest wire = request(10);
  wire.set_request_id("mine");
  wire.set_on_disconnect(v1::ON_DISCONNECT_CONTINUE);
  v1::GenerateEvent event;
  Outcome seen;
  {
    auto stream = service.client->generate(wire);
    ASSERT_TRUE(stream.next(event));
    service.engine.steps(3);
    while (seen.ids.size() < 3 && stream.next(event)) take(event, seen);
  }  // gone
  EXPECT_EQ(seen.text, "abc");
  service.engine.steps(2);
  EXPECT_EQ(service.frontend->live_requests(), 1);
  v1::AttachRequest attach;
  attach.set_request_id("mine");
  attach.add_from_token_index(3);
  {
    auto stream = service.client->attach(attach);
    ASSERT_TRUE(stream.next(event));
    EXPECT_EQ(event.accepted().request_id(), "mine");
  }  // an attached reader's end does not touch the request either
  auto stream = service.client->attach(attach);
  service.engine.steps(10);
  const Outcome rest = drain(std::move(stream));
  EXPECT_EQ(rest.text, "defghij");
  EXPECT_EQ(rest.deltas.front().token_index(), 3);
  const Outcome again = drain(service.client->attach(attach));  // after the end
  EXPECT_EQ(again.text, "defghij");
  EXPECT_EQ(again.last.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(Coordinator, ResumesAfterPriorTokens) {
  Service service;
  service.engine.start(100us);
  v1::GenerateRequest wire = request(6);
  wire.mutable_sampling()->set_seed(1);
  for (const char c : std::string("ab")) wire.add_prior_token_ids(c);
  const Outcome outcome = drain(service.client->generate(wire));
  EXPECT_EQ(outcome.text, "cdef");
  EXPECT_EQ(outcome.deltas.front().token_index(), 2);
  EXPECT_EQ(outcome.last.usage().completion_tokens(), 6);
}

// Megabytes are generated for a client that does not read. Others go on; what it is owed stays in
// the record and comes in few, large messages once it reads.
TEST(Coordinator, AStalledClientHoldsUpNobody) {
  constexpr int32_t kTokens = 6000;
  Service service({.script = [](const Sequence&) { return kWords; },
                   .words = {std::string(1000, 'x')},
                   .max_context = kTokens + 10});
  const auto stub = v1::Trireme::NewStub(make_channel(service.address()));
  grpc::ClientContext context;
  const auto stalled = stub->Generate(&context, request(kTokens));
  v1::GenerateEvent event;
  ASSERT_TRUE(stalled->Read(&event));
  for (int i = 0; i < kTokens; ++i) {
    service.engine.step();
    if (i % 1000 != 0) continue;
    auto other = service.client->generate(request(1));
    ASSERT_TRUE(other.next(event));
    service.engine.step();
    EXPECT_EQ(drain(std::move(other)).text.size(), 1000u);
  }
  EXPECT_TRUE(eventually([&] { return service.frontend->live_requests() == 0; }));
  Outcome outcome;
  while (stalled->Read(&event)) take(event, outcome);
  EXPECT_TRUE(stalled->Finish().ok());
  EXPECT_EQ(outcome.ids.size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(outcome.text.size(), static_cast<size_t>(kTokens) * 1000);
  EXPECT_LT(outcome.deltas.size(), 2000u);
  for (const auto& delta : outcome.deltas) EXPECT_LT(delta.text().size(), 1u << 20);
  EXPECT_EQ(outcome.ends, 1);
}

// Eight clients stop reading, and their requests end and are kept no longer: what they still hold
// is within the limit, since those that ended first are let go of. The others are served to the
// end.
TEST(Coordinator, StalledClientsHoldNoMoreThanTheLimit) {
  constexpr int32_t kTokens = 2000;
  constexpr int64_t kRecord = int64_t{kTokens} * 1000;
  Service service({.script = [](const Sequence&) { return kWords; },
                   .words = {std::string(1000, 'x')},
                   .max_context = kTokens + 10,
                   .keep = std::chrono::milliseconds(0),
                   .max_ended_bytes = 5 * kRecord});
  grpc::ChannelArguments small;  // else the client's windows grow to megabytes
  small.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 65535);
  const auto stub = v1::Trireme::NewStub(
      grpc::CreateCustomChannel(service.address(), grpc::InsecureChannelCredentials(), small));
  constexpr size_t kClients = 8;
  std::vector<grpc::ClientContext> contexts(kClients);
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> streams;
  v1::GenerateEvent event;
  for (size_t i = 0; i < kClients; ++i) {
    streams.push_back(stub->Generate(&contexts[i], request(kTokens)));
    ASSERT_TRUE(streams.back()->Read(&event));
    for (int32_t t = 0; t < kTokens; ++t) service.engine.step();
    EXPECT_TRUE(eventually([&] { return service.frontend->live_requests() == 0; }));
  }
  EXPECT_TRUE(eventually([&] { return service.frontend->record_bytes() <= 5 * kRecord; }));
  EXPECT_GT(service.frontend->record_bytes(), 2 * kRecord);
  size_t whole = 0, cancelled = 0;
  for (size_t i = 0; i < kClients; ++i) {
    Outcome outcome;
    while (streams[i]->Read(&event)) take(event, outcome);
    const grpc::Status status = streams[i]->Finish();
    if (status.ok()) {
      ++whole;
      EXPECT_EQ(outcome.text.size(), static_cast<size_t>(kRecord)) << i;
    } else {
      ++cancelled;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED) << i;
      EXPECT_EQ(whole, 0u) << "the oldest are let go of first";
    }
  }
  EXPECT_GE(whole, 3u);
  EXPECT_GE(cancelled, 3u);
  EXPECT_TRUE(eventually([&] { return service.frontend->record_bytes() == 0; }));
}

}  // namespace
}  // namespace trireme::test
