#include "clients/client.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <thread>
#include <utility>

#include "base/error.h"
#include "clients/client_channel.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "trireme/v1/trireme.grpc.pb.h"

namespace trireme {
namespace {

using Clock = std::chrono::system_clock;
constexpr std::chrono::seconds kUnaryTimeout{30};
namespace health = grpc::health::v1;

// gRPC would try for ever. Targets of its own forms are left to it.
void check_server(const std::string& server) {
  for (const char* form : {"dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:"}) {
    if (server.starts_with(form)) return;
  }
  const size_t colon = server.rfind(':');
  const bool split = colon != std::string::npos && colon > 0;
  const std::string_view host = std::string_view(server).substr(0, split ? colon : 0);
  const bool bracketed = host.starts_with('[') && host.ends_with(']') && host.size() > 2;
  int port = 0;
  const char* end = server.data() + server.size();
  const auto parsed =
      std::from_chars(server.data() + (split ? colon + 1 : server.size()), end, port);
  const bool number = parsed.ec == std::errc() && parsed.ptr == end && port >= 1 && port <= 65535;
  if (number && (bracketed || host.find_first_of("[]:") == std::string_view::npos)) return;
  fail(ErrorCode::kInvalidArgument, "server: '{}' is not HOST:PORT with a port from 1 to 65535",
       server);
}

}  // namespace

std::shared_ptr<grpc::Channel> make_channel(const std::string& server) {
  check_server(server);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // A server that has just come up is found quickly.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

ErrorCode to_error_code(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::OUT_OF_RANGE: return ErrorCode::kInvalidArgument;
    case grpc::StatusCode::NOT_FOUND: return ErrorCode::kNotFound;
    case grpc::StatusCode::ALREADY_EXISTS: return ErrorCode::kAlreadyExists;
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return ErrorCode::kResourceExhausted;
    case grpc::StatusCode::FAILED_PRECONDITION: return ErrorCode::kFailedPrecondition;
    case grpc::StatusCode::UNIMPLEMENTED: return ErrorCode::kUnimplemented;
    case grpc::StatusCode::UNAVAILABLE: return ErrorCode::kUnavailable;
    case grpc::StatusCode::DEADLINE_EXCEEDED: return ErrorCode::kDeadlineExceeded;
    case grpc::StatusCode::CANCELLED: return ErrorCode::kCancelled;
    case grpc::StatusCode::ABORTED: return ErrorCode::kAborted;
    case grpc::StatusCode::DATA_LOSS: return ErrorCode::kDataLoss;
    default: return ErrorCode::kInternal;
  }
}

void check(const grpc::Status& status) {
  if (!status.ok()) throw Error(to_error_code(status.error_code()), status.error_message());
}

struct EventStream::State {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader;
  bool ended = false;
};

EventStream::EventStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
EventStream::EventStream(EventStream&&) noexcept = default;

EventStream& EventStream::operator=(EventStream&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

EventStream::~EventStream() {
  if (state_ == nullptr || state_->ended) return;
  state_->context.TryCancel();
  v1::GenerateEvent event;
  while (state_->reader->Read(&event)) {
  }
  state_->reader->Finish();
}

bool EventStream::next(v1::GenerateEvent& event) {
  if (state_->ended) return false;
  if (state_->reader->Read(&event)) return true;
  state_->ended = true;
  check(state_->reader->Finish());
  return false;
}

void EventStream::cancel() { state_->context.TryCancel(); }

std::chrono::milliseconds EventStream::retry_after() const {
  int64_t ms = 0;
  if (!state_->ended) return std::chrono::milliseconds(ms);
  const auto& trailers = state_->context.GetServerTrailingMetadata();
  if (const auto at = trailers.find("retry-after-ms"); at != trailers.end()) {
    std::from_chars(at->second.data(), at->second.data() + at->second.size(), ms);
  }
  return std::chrono::milliseconds(ms);
}

struct Client::State {
  explicit State(const std::string& server)
      : server(server),
        channel(make_channel(server)),
        stub(v1::Trireme::NewStub(channel)),
        health(health::Health::NewStub(channel)) {}

  // One unary call with the usual deadline.
  template <typename Request, typename Response>
  Response call(grpc::Status (v1::Trireme::Stub::*method)(grpc::ClientContext*, const Request&,
                                                          Response*),
                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(Clock::now() + kUnaryTimeout);
    Response response;
    check((stub.get()->*method)(&context, request, &response));
    return response;
  }

  const std::string server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Trireme::Stub> stub;
  std::unique_ptr<health::Health::Stub> health;
};

Client::Client(const std::string& server) : state_(std::make_unique<State>(server)) {}
Client::~Client() = default;

bool Client::healthy() {
  grpc::ClientContext context;
  context.set_deadline(Clock::now() + std::chrono::seconds(2));
  health::HealthCheckRequest request;
  request.set_service(v1::Trireme::service_full_name());
  health::HealthCheckResponse response;
  return state_->health->Check(&context, request, &response).ok() &&
         response.status() == health::HealthCheckResponse::SERVING;
}

void Client::wait_healthy(Timeout timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (healthy()) return;
    if (Clock::now() >= deadline) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const bool connected = state_->channel->GetState(false) == GRPC_CHANNEL_READY;
  fail(ErrorCode::kDeadlineExceeded, "{} {} after {} ms", state_->server,
       connected ? "is not serving yet" : "cannot be reached", timeout.count());
}

EventStream Client::generate(const v1::GenerateRequest& request, Timeout timeout) {
  auto call = std::make_unique<EventStream::State>();
  if (timeout != kNoTimeout) call->context.set_deadline(Clock::now() + timeout);
  call->reader = state_->stub->Generate(&call->context, request);
  return EventStream(std::move(call));
}

EventStream Client::attach(const v1::AttachRequest& request, Timeout timeout) {
  auto call = std::make_unique<EventStream::State>();
  if (timeout != kNoTimeout) call->context.set_deadline(Clock::now() + timeout);
  call->reader = state_->stub->Attach(&call->context, request);
  return EventStream(std::move(call));
}

bool Client::abort(const std::string& request_id) {
  v1::AbortRequest request;
  request.set_request_id(request_id);
  return state_->call(&v1::Trireme::Stub::Abort, request).found();
}

v1::ServerInfo Client::server_info() {
  return state_->call(&v1::Trireme::Stub::GetServerInfo, v1::GetServerInfoRequest());
}

v1::ModelInfo Client::model_info() {
  return state_->call(&v1::Trireme::Stub::GetModelInfo, v1::GetModelInfoRequest());
}

v1::Load Client::load() { return state_->call(&v1::Trireme::Stub::GetLoad, v1::GetLoadRequest()); }

std::vector<int32_t> Client::tokenize(const std::string& text, bool add_special) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_special_tokens(add_special);
  const auto response = state_->call(&v1::Trireme::Stub::Tokenize, request);
  return {response.token_ids().begin(), response.token_ids().end()};
}

std::string Client::detokenize(const std::vector<int32_t>& ids, bool skip_special) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  request.set_skip_special_tokens(skip_special);
  return state_->call(&v1::Trireme::Stub::Detokenize, request).text();
}

}  // namespace trireme
