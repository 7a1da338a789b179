// The server itself: what is no message, reflection, health, its start and its end.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "clients/client_channel.h"
#include "tests/unit/coordinator_fixture.h"
#include "trireme/v1/trireme.grpc.pb.h"

namespace trireme::test {
namespace {

// One call with raw bytes; gives the status, and the answers strung together.
std::pair<grpc::Status, std::string> raw_call(const std::string& address, const std::string& method,
                                              const std::string& bytes) {
  grpc::GenericStub stub(make_channel(address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + 10s);
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  wait();
  grpc::Slice slice(bytes);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
  wait();
  std::string answers;
  for (;;) {
    grpc::ByteBuffer buffer;
    call->Read(&buffer, nullptr);
    if (!wait()) break;
    grpc::Slice answer;
    if (buffer.DumpToSingleSlice(&answer).ok()) {
      answers.append(reinterpret_cast<const char*>(answer.begin()), answer.size());
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  return {status, answers};
}

TEST(Server, RefusesBytesThatAreNoMessage) {
  Service service;
  for (const char* method : {"Generate", "Attach", "Abort", "Tokenize", "Detokenize"}) {
    const auto [status, answers] =
        raw_call(service.address(), std::string("/trireme.v1.Trireme/") + method, "\xff\xff\xff");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_EQ(answers, "");
  }
  EXPECT_EQ(raw_call(service.address(), "/trireme.v1.Trireme/Nothing", "").first.error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(Server, ReflectionListsAndDescribesTheServices) {
  Service service;
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const auto [status, list] = raw_call(service.address(), method, "\x3a\x01*");  // list_services
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_NE(list.find("trireme.v1.Trireme"), std::string::npos);
  EXPECT_NE(list.find("grpc.health.v1.Health"), std::string::npos);
  const std::string symbol = "trireme.v1.GenerateRequest";
  const auto [found, file] =  // file_containing_symbol
      raw_call(service.address(), method, "\x22" + std::string(1, char(symbol.size())) + symbol);
  EXPECT_TRUE(found.ok());
  EXPECT_NE(file.find("trireme/v1/trireme.proto"), std::string::npos);
}

TEST(Server, IsHealthyOnlyWhileItServes) {
  CoordinatorConfig config;
  config.listen = "127.0.0.1:0";
  const auto port_file =
      std::filesystem::temp_directory_path() / ("trireme_port_" + std::to_string(getpid()));
  config.port_file = port_file;
  Coordinator coordinator(config);
  Client client("127.0.0.1:" + std::to_string(coordinator.port()));
  EXPECT_FALSE(client.healthy());
  EXPECT_FALSE(std::filesystem::exists(port_file));
  EXPECT_EQ(error_of([&] { client.load(); }).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(error_of([&] { drain(client.generate(request())); }).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(error_of([&] { client.wait_healthy(100ms); }).code(), ErrorCode::kDeadlineExceeded);

  const Tokenizer tokenizer = byte_tokenizer();
  ScriptedEngine engine;
  FrontendConfig frontend_config;
  frontend_config.vocab = kVocab;
  Frontend frontend(engine, &tokenizer, frontend_config);
  coordinator.serve(frontend, engine, {});
  client.wait_healthy(5s);
  int port = 0;
  std::ifstream(port_file) >> port;
  EXPECT_EQ(port, coordinator.port());
  std::filesystem::remove(port_file);

  // Within its grace a live request goes on, but no new one is taken.
  auto stream = client.generate(request());
  v1::GenerateEvent event;
  ASSERT_TRUE(stream.next(event));
  std::thread ending([&] { coordinator.shutdown(10s); });
  EXPECT_TRUE(eventually([&] { return !client.healthy(); }));
  EXPECT_EQ(error_of([&] { drain(client.generate(request())); }).code(), ErrorCode::kUnavailable);
  engine.steps(5);
  EXPECT_EQ(drain(std::move(stream)).text, "abcde");
  ending.join();
}

TEST(Server, ShutdownWithoutGraceEndsStreamsAndStalledClients) {
  Options options;
  options.script = [](const Sequence&) { return kWords; };
  options.words = {std::string(1000, 'x')};
  Service service(options);
  auto reading = service.client->generate(request(5000));
  v1::GenerateEvent event;
  ASSERT_TRUE(reading.next(event));
  const auto stub = v1::Trireme::NewStub(make_channel(service.address()));
  grpc::ClientContext context;
  const auto stalled = stub->Generate(&context, request(5000));
  ASSERT_TRUE(stalled->Read(&event));
  service.engine.steps(4000);
  std::thread ending([&] { service.coordinator->shutdown(0ms); });
  const Outcome outcome = drain(std::move(reading));
  EXPECT_EQ(outcome.last.finish_reason(), v1::FINISH_REASON_ABORTED);
  ending.join();  // though one client never reads
  context.TryCancel();
  while (stalled->Read(&event)) {
  }
  EXPECT_FALSE(stalled->Finish().ok());
}

TEST(Server, TwoServersOnOnePortConflict) {
  Service service;
  std::vector<std::string> hosts = {"127.0.0.1:", "0.0.0.0:"};
  // A machine without /etc/hosts may not know this name.
  if (gethostbyname("localhost") != nullptr) hosts.push_back("localhost:");
  for (const std::string& host : hosts) {
    CoordinatorConfig config;
    config.listen = host + std::to_string(service.coordinator->port());
    const Error error = error_of([&] { Coordinator second(config); });
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_NE(std::string(error.what()).find("in use"), std::string::npos) << error.what();
  }
}

TEST(Server, BadAddressesAreRefused) {
  for (const char* address : {"", "50051", ":50051", "localhost", "localhost:", "localhost:x",
                              "localhost:65536", "localhost:-1", "::1:50051", "localhost:1 2"}) {
    CoordinatorConfig config;
    config.listen = address;
    EXPECT_EQ(error_of([&] { Coordinator server(config); }).code(), ErrorCode::kInvalidArgument)
        << address;
  }
  CoordinatorConfig elsewhere;
  elsewhere.listen = "192.0.2.1:0";  // not an address of any machine (RFC 5737)
  EXPECT_EQ(error_of([&] { Coordinator server(elsewhere); }).code(), ErrorCode::kUnavailable);
}

// Many short requests at once, some cancelled: all end, and nothing is left.
TEST(Server, ManyClientsLeaveNothingBehind) {
  Service service;
  service.engine.start(100us);
  std::vector<std::thread> threads;
  std::atomic<int> whole{0};
  for (int thread = 0; thread < 16; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 25; ++i) {
        auto stream = service.client->generate(request(1 + (i + thread) % 30));
        if (i % 5 == 4) {
          v1::GenerateEvent event;
          stream.next(event);
          continue;  // cancelled by the destructor
        }
        whole += drain(std::move(stream)).ends;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(whole, 16 * 20);
  EXPECT_TRUE(eventually(
      [&] { return service.frontend->live_requests() == 0 && service.engine.live() == 0; }));
}

}  // namespace
}  // namespace trireme::test
