#include "runtime/coordinator.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "runtime/coordinator_messages.h"
#include "runtime/coordinator_service.h"
#include "runtime/listen_address.h"

namespace trireme {
namespace {

// Protobuf would write to stderr whenever a client sends text that is not UTF-8.
void log_protobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  log::debug("protobuf: {}", message);
}

// Renamed once written, so that a reader never sees half of it. Throws kInvalidArgument.
void write_port_file(const std::string& path, int port) {
  const std::string part = path + ".part";
  std::ofstream file(part);
  file << port << "\n";
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    fail(ErrorCode::kInvalidArgument, "port file {}: it cannot be written", path);
  }
}

// The same refusal before a model is loaded.
void check_port_file(const std::string& path) {
  const std::string part = path + ".part";
  if (!std::ofstream(part)) {
    fail(ErrorCode::kInvalidArgument, "port file {}: it cannot be written", path);
  }
  std::remove(part.c_str());
}

void set_keepalive(grpc::ServerBuilder& builder) {
  // A peer that has vanished without a word is noticed within about a minute; its calls are then
  // cancelled.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 40'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
}

}  // namespace

struct Coordinator::State {
  explicit State(const CoordinatorConfig& config)
      : service(config.retry_after_ms), port_file(config.port_file) {}

  TriremeService service;
  const std::string port_file;
  int port = 0;
  std::optional<Serving> serving;
  std::unique_ptr<grpc::Server> server;
  std::mutex shutdown_mutex;  // a second caller waits for the first
  bool stopped = false;

  void set_health(bool serving_now) {
    grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
    health->SetServingStatus(serving_now);  // the server as a whole: ""
    health->SetServingStatus(v1::Trireme::service_full_name(), serving_now);
  }
};

Coordinator::Coordinator(const CoordinatorConfig& config)
    : state_(std::make_unique<State>(config)) {
  google::protobuf::SetLogHandler(log_protobuf);
  check_listen_address(config.listen);
  if (!config.port_file.empty()) check_port_file(config.port_file);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server must not share it
  builder.SetMaxReceiveMessageSize(config.max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  set_keepalive(builder);
  builder.AddListeningPort(config.listen, grpc::InsecureServerCredentials(), &state_->port);
  builder.RegisterService(&state_->service);
  state_->server = builder.BuildAndStart();
  if (state_->server == nullptr || state_->port <= 0) {
    fail(ErrorCode::kUnavailable, "cannot listen on {}", config.listen);
  }
  state_->set_health(false);
}

Coordinator::~Coordinator() { shutdown(std::chrono::milliseconds(0)); }

int Coordinator::port() const { return state_->port; }

void Coordinator::serve(Frontend& frontend, EngineApi& engine,
                        const ServerDescription& description) {
  State& state = *state_;
  if (state.serving.has_value()) fail(ErrorCode::kInternal, "serve() was called twice");
  state.serving.emplace(Serving{frontend, engine, {}, {}, std::chrono::steady_clock::now()});
  to_message(description, state.serving->server);
  to_message(description, frontend.config(), frontend.tokenizer() != nullptr, state.serving->model);
  state.service.serve(&*state.serving);
  state.set_health(true);
  if (!state.port_file.empty()) write_port_file(state.port_file, state.port);
}

void Coordinator::shutdown(std::chrono::milliseconds grace) {
  State& state = *state_;
  const std::lock_guard lock(state.shutdown_mutex);
  if (state.stopped || state.server == nullptr) return;
  state.stopped = true;
  const auto deadline = std::chrono::steady_clock::now() + grace;
  state.set_health(false);
  if (state.serving.has_value()) {
    Frontend& frontend = state.serving->frontend;
    frontend.stop_accepting();
    while (frontend.live_requests() > 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    frontend.abort_all();
  }
  // Readers have a moment to take what is left; a stalled one is cut off.
  state.server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  state.server->Wait();
}

}  // namespace trireme
