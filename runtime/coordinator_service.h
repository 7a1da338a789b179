// The methods of trireme.v1.Trireme. Every method takes raw bytes, so that a malformed request gets
// an answer that names the field.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>

#include "runtime/coordinator.h"
#include "trireme/v1/trireme.grpc.pb.h"

namespace trireme {

// What is served once the model is loaded.
struct Serving {
  Frontend& frontend;
  EngineApi& engine;
  v1::ServerInfo server;
  v1::ModelInfo model;
  std::chrono::steady_clock::time_point start;
};

using RawService =
    v1::Trireme::WithRawCallbackMethod_Generate<v1::Trireme::WithRawCallbackMethod_Attach<
        v1::Trireme::WithRawCallbackMethod_Abort<v1::Trireme::WithRawCallbackMethod_GetServerInfo<
            v1::Trireme::WithRawCallbackMethod_GetModelInfo<
                v1::Trireme::WithRawCallbackMethod_GetLoad<
                    v1::Trireme::WithRawCallbackMethod_Tokenize<
                        v1::Trireme::WithRawCallbackMethod_Detokenize<v1::Trireme::Service>>>>>>>>;

class TriremeService final : public RawService {
 public:
  explicit TriremeService(int retry_after_ms) : retry_after_ms_(retry_after_ms) {}

  // `serving` must outlive every call.
  void serve(const Serving* serving) { serving_ = serving; }

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using UnaryReactor = grpc::ServerUnaryReactor;
  using StreamReactor = grpc::ServerWriteReactor<Bytes>;

  StreamReactor* Generate(Context* context, const Bytes* request) override;
  StreamReactor* Attach(Context* context, const Bytes* request) override;
  UnaryReactor* Abort(Context* context, const Bytes* request, Bytes* response) override;
  UnaryReactor* GetServerInfo(Context* context, const Bytes* request, Bytes* response) override;
  UnaryReactor* GetModelInfo(Context* context, const Bytes* request, Bytes* response) override;
  UnaryReactor* GetLoad(Context* context, const Bytes* request, Bytes* response) override;
  UnaryReactor* Tokenize(Context* context, const Bytes* request, Bytes* response) override;
  UnaryReactor* Detokenize(Context* context, const Bytes* request, Bytes* response) override;

 private:
  const int retry_after_ms_;
  std::atomic<const Serving*> serving_{nullptr};  // null while the model loads
};

}  // namespace trireme
