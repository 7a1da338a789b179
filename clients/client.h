// A client of a Trireme server: connect, wait until healthy, stream. No gRPC header is needed to
// use it; the messages are those of proto/trireme/v1.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/v1/trireme.pb.h"

namespace trireme {

// The events of one Generate or Attach call. One thread at a time, but cancel() from any.
class EventStream {
 public:
  struct State;
  explicit EventStream(std::unique_ptr<State> state);
  ~EventStream();  // cancels a call that has not ended
  EventStream(EventStream&&) noexcept;
  EventStream& operator=(EventStream&&) noexcept;

  // Blocks for the next event; false once the stream has ended well. Throws Error with the status'
  // code and message if it ended otherwise.
  bool next(v1::GenerateEvent& event);
  void cancel();
  // What the server suggests to wait before trying again, after next() threw kResourceExhausted.
  std::chrono::milliseconds retry_after() const;

 private:
  std::unique_ptr<State> state_;
};

class Client {
 public:
  using Timeout = std::chrono::milliseconds;
  static constexpr Timeout kNoTimeout{0};

  explicit Client(const std::string& server);  // HOST:PORT; connects when first used
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Returns once grpc.health.v1 says SERVING. Throws kDeadlineExceeded, saying what it last saw.
  void wait_healthy(Timeout timeout);
  bool healthy();  // now

  // The call's deadline is `timeout` from now; on it the server aborts the request.
  EventStream generate(const v1::GenerateRequest& request, Timeout timeout = kNoTimeout);
  EventStream attach(const v1::AttachRequest& request, Timeout timeout = kNoTimeout);

  // All throw Error with the status' code.
  bool abort(const std::string& request_id);
  v1::ServerInfo server_info();
  v1::ModelInfo model_info();
  v1::Load load();
  std::vector<int32_t> tokenize(const std::string& text, bool add_special = true);
  std::string detokenize(const std::vector<int32_t>& ids, bool skip_special = true);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
