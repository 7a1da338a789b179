// Between the wire's messages and the frontend's structs. Protobuf only, no gRPC.
#pragma once

#include <string>
#include <string_view>

#include "runtime/coordinator.h"
#include "trireme/v1/trireme.pb.h"

namespace trireme {

// Throws kInvalidArgument naming what is malformed: for text that is not UTF-8, the field.
void parse_message(std::string_view bytes, google::protobuf::Message& message);

GenerateParams to_params(v1::GenerateRequest&& request);
void to_message(const OutputStream& stream, v1::Accepted& accepted);
// `tokenizer` may be null: then no token bytes are given.
void to_message(const Delta& delta, const Tokenizer* tokenizer, v1::OutputDelta& message);
void to_message(const ServerDescription& description, v1::ServerInfo& info);
void to_message(const ServerDescription& description, const FrontendConfig& frontend,
                bool has_tokenizer, v1::ModelInfo& info);
void to_message(const EngineStats& stats, int32_t live_requests, v1::Load& load);

}  // namespace trireme
