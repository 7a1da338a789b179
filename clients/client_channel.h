// What the client's sources share: the channel and the way back from statuses to errors.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/error.h"

namespace trireme {

// Throws kInvalidArgument for what is not HOST:PORT or one of gRPC's own forms.
std::shared_ptr<grpc::Channel> make_channel(const std::string& server);
ErrorCode to_error_code(grpc::StatusCode code);
// Throws Error unless `status` is OK.
void check(const grpc::Status& status);

}  // namespace trireme
