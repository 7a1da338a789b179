#include "runtime/coordinator_service.h"

#include <string>
#include <utility>

#include "base/error.h"
#include "runtime/coordinator_messages.h"
#include "runtime/coordinator_status.h"
#include "runtime/coordinator_stream.h"

namespace trireme {
namespace {

const Serving& loaded(const Serving* serving) {
  if (serving == nullptr) fail(ErrorCode::kUnavailable, "the model is still loading");
  return *serving;
}

template <typename Message>
Message parse(const grpc::ByteBuffer& bytes) {
  grpc::Slice slice;
  if (!bytes.DumpToSingleSlice(&slice).ok()) fail(ErrorCode::kInternal, "cannot read the request");
  Message message;
  parse_message({reinterpret_cast<const char*>(slice.begin()), slice.size()}, message);
  return message;
}

// Parses, runs body(request, response), serializes.
template <typename Request, typename Response, typename Body>
grpc::Status run_unary(const grpc::ByteBuffer* request, grpc::ByteBuffer* response, Body&& body) {
  grpc::Status serialized;
  const grpc::Status status = run_to_status([&] {
    const auto in = parse<Request>(*request);
    Response out;
    body(in, out);
    bool own = false;
    serialized = grpc::SerializationTraits<Response>::Serialize(out, response, &own);
  });
  return status.ok() ? serialized : status;
}

template <typename Request, typename Response, typename Body>
grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                 Body&& body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(run_unary<Request, Response>(request, response, body));
  return reactor;
}

// As answer(), on a frontend thread.
template <typename Request, typename Response, typename Body>
grpc::ServerUnaryReactor* answer_later(grpc::CallbackServerContext* context, const Serving* serving,
                                       int retry_after_ms, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response, Body body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const grpc::Status status = run_to_status([&] {
    Frontend& frontend = loaded(serving).frontend;
    const auto work = [reactor, request, response, body = std::move(body), &frontend] {
      reactor->Finish(run_unary<Request, Response>(
          request, response, [&](const Request& in, Response& out) { body(frontend, in, out); }));
    };
    if (!frontend.post(work, static_cast<int64_t>(request->Length()))) {
      fail(ErrorCode::kResourceExhausted, "too many requests wait to be read");
    }
  });
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    context->AddTrailingMetadata("retry-after-ms", std::to_string(retry_after_ms));
  }
  if (!status.ok()) reactor->Finish(status);
  return reactor;
}

}  // namespace

TriremeService::StreamReactor* TriremeService::Generate(Context* context, const Bytes* request) {
  const Serving* serving = serving_;
  v1::GenerateRequest parsed;
  const grpc::Status status = run_to_status([&] {
    loaded(serving);
    parsed = parse<v1::GenerateRequest>(*request);
  });
  if (!status.ok()) return StreamCall::refuse(context, status);
  Frontend& frontend = serving->frontend;
  StreamCall::Options options;
  options.abort_on_cancel = parsed.on_disconnect() != v1::ON_DISCONNECT_CONTINUE;
  options.retry_after_ms = retry_after_ms_;
  const auto shared = std::make_shared<v1::GenerateRequest>(std::move(parsed));
  return StreamCall::start(
      context, frontend, options, static_cast<int64_t>(request->Length()),
      [&frontend, shared] { return frontend.generate(to_params(std::move(*shared))); });
}

TriremeService::StreamReactor* TriremeService::Attach(Context* context, const Bytes* request) {
  const Serving* serving = serving_;
  v1::AttachRequest parsed;
  const grpc::Status status = run_to_status([&] {
    loaded(serving);
    parsed = parse<v1::AttachRequest>(*request);
  });
  if (!status.ok()) return StreamCall::refuse(context, status);
  Frontend& frontend = serving->frontend;
  StreamCall::Options options;
  options.retry_after_ms = retry_after_ms_;
  return StreamCall::start(
      context, frontend, options, static_cast<int64_t>(request->Length()),
      [&frontend, parsed = std::move(parsed)] {
        const auto& from = parsed.from_token_index();
        return frontend.attach(parsed.request_id(), {from.begin(), from.end()});
      });
}

TriremeService::UnaryReactor* TriremeService::Abort(Context* context, const Bytes* request,
                                                    Bytes* response) {
  const Serving* serving = serving_;
  return answer<v1::AbortRequest, v1::AbortResponse>(
      context, request, response, [&](const v1::AbortRequest& in, v1::AbortResponse& out) {
        out.set_found(loaded(serving).frontend.abort(in.request_id()));
      });
}

TriremeService::UnaryReactor* TriremeService::GetServerInfo(Context* context, const Bytes* request,
                                                            Bytes* response) {
  const Serving* serving = serving_;
  return answer<v1::GetServerInfoRequest, v1::ServerInfo>(
      context, request, response, [&](const v1::GetServerInfoRequest&, v1::ServerInfo& out) {
        out = loaded(serving).server;
        const auto uptime = std::chrono::steady_clock::now() - serving->start;
        out.set_uptime_ms(std::chrono::duration_cast<std::chrono::milliseconds>(uptime).count());
      });
}

TriremeService::UnaryReactor* TriremeService::GetModelInfo(Context* context, const Bytes* request,
                                                           Bytes* response) {
  const Serving* serving = serving_;
  return answer<v1::GetModelInfoRequest, v1::ModelInfo>(
      context, request, response,
      [&](const v1::GetModelInfoRequest&, v1::ModelInfo& out) { out = loaded(serving).model; });
}

TriremeService::UnaryReactor* TriremeService::GetLoad(Context* context, const Bytes* request,
                                                      Bytes* response) {
  const Serving* serving = serving_;
  return answer<v1::GetLoadRequest, v1::Load>(
      context, request, response, [&](const v1::GetLoadRequest&, v1::Load& out) {
        const Serving& now = loaded(serving);
        to_message(now.engine.stats(), now.frontend.live_requests(), out);
      });
}

TriremeService::UnaryReactor* TriremeService::Tokenize(Context* context, const Bytes* request,
                                                       Bytes* response) {
  return answer_later<v1::TokenizeRequest, v1::TokenizeResponse>(
      context, serving_, retry_after_ms_, request, response,
      [](Frontend& frontend, const v1::TokenizeRequest& in, v1::TokenizeResponse& out) {
        const bool add_special = !in.has_add_special_tokens() || in.add_special_tokens();
        const auto ids = frontend.tokenize(in.text(), add_special);
        out.mutable_token_ids()->Assign(ids.begin(), ids.end());
      });
}

TriremeService::UnaryReactor* TriremeService::Detokenize(Context* context, const Bytes* request,
                                                         Bytes* response) {
  return answer_later<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context, serving_, retry_after_ms_, request, response,
      [](Frontend& frontend, const v1::DetokenizeRequest& in, v1::DetokenizeResponse& out) {
        const bool skip_special = !in.has_skip_special_tokens() || in.skip_special_tokens();
        out.set_text(
            frontend.detokenize({in.token_ids().begin(), in.token_ids().end()}, skip_special));
      });
}

}  // namespace trireme
