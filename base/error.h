// The one exception type of the project, and how to raise it.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace trireme {

// Codes follow gRPC's canonical codes, so that one function maps them to statuses
// (runtime/coordinator) and one to exit codes (exit_code below).
enum class ErrorCode {
  kInvalidArgument,    // the caller's input is wrong, whatever the state of the system
  kNotFound,           // a file, tensor, request id that does not exist
  kAlreadyExists,      // a request id that is in use
  kResourceExhausted,  // queue full, not enough memory
  kFailedPrecondition, // right input, wrong moment
  kUnimplemented,      // a known thing that this build does not do (named in the message)
  kUnavailable,        // a peer or server cannot be reached
  kDeadlineExceeded,
  kCancelled,
  kAborted,            // the world is going down
  kDataLoss,           // malformed or truncated file
  kInternal,           // a bug of ours
};

const char* to_string(ErrorCode code);

// The exit code of a command that ends with this error: 2 for usage or bad input, 1 otherwise.
int exit_code(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error with a formatted one-line message.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace trireme
