// One Generate or Attach call: follows an OutputStream with one write in flight.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>

#include "runtime/frontend.h"
#include "trireme/v1/trireme.pb.h"

namespace trireme {

// Owned by itself from construction until gRPC is done with the call. At any moment exactly one of
// these drives it: whoever opens it, a write's completion, or the armed stream.
class StreamCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                         public std::enable_shared_from_this<StreamCall> {
 public:
  // Makes the stream; runs on a frontend thread (`bytes` as in Frontend::post). Throws Error.
  using Open = std::function<std::unique_ptr<OutputStream>()>;
  struct Options {
    bool abort_on_cancel = false;  // the call's end before the stream's ends the request
    int retry_after_ms = 1000;
  };

  static StreamCall* start(grpc::CallbackServerContext* context, Frontend& frontend,
                           const Options& options, int64_t bytes, Open open);
  // A call that ends with `status` at once.
  static StreamCall* refuse(grpc::CallbackServerContext* context, const grpc::Status& status);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class State { kDriving, kWriting, kArmed, kFinished };

  StreamCall(grpc::CallbackServerContext* context, Frontend* frontend, const Options& options);
  void open(const Open& open);
  void pump();
  void ready();
  // False, and the call is finished, if it was cancelled; else it is now in `next`.
  bool enter(State next);
  void leave();  // memory is short: the call is cancelled
  void finish(const grpc::Status& status);
  void write(bool last);
  grpc::Status cancel_status() const;

  grpc::CallbackServerContext* const context_;  // valid until OnDone
  Frontend* const frontend_;
  const Options options_;
  const std::chrono::system_clock::time_point deadline_;
  std::shared_ptr<StreamCall> self_;

  std::mutex mutex_;  // guards these three
  State state_ = State::kDriving;
  bool cancelled_ = false;
  std::string request_id_;  // what a cancelled call may have to abort
  // Held while the context is used by somebody who does not drive the call. Recursive because gRPC
  // may go on to OnDone from within.
  std::recursive_mutex context_mutex_;
  bool done_ = false;

  // Of the driver:
  std::unique_ptr<OutputStream> stream_;
  v1::GenerateEvent event_;
  grpc::ByteBuffer buffer_;
};

}  // namespace trireme
