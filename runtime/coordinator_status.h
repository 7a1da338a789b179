// The one place where errors become gRPC statuses.
#pragma once

#include <grpcpp/support/status.h>

#include "base/error.h"

namespace trireme {

grpc::StatusCode to_status_code(ErrorCode code);
inline grpc::Status to_status(const Error& error) {
  return {to_status_code(error.code()), error.what()};
}

// Runs `body` and returns its status: OK, an Error's, or INTERNAL for any other exception.
template <typename Body>
grpc::Status run_to_status(Body&& body) {
  try {
    body();
    return grpc::Status::OK;
  } catch (const Error& error) {
    return to_status(error);
  } catch (const std::exception& error) {
    return {grpc::StatusCode::INTERNAL, error.what()};
  }
}

}  // namespace trireme
