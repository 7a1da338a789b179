#include "runtime/coordinator_stream.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>

#include "runtime/coordinator_messages.h"
#include "runtime/coordinator_status.h"

namespace trireme {
namespace {

// Tokens and log-probabilities of one message: it stays well below the 4 MiB that gRPC clients
// receive by default.
constexpr size_t kMaxEntriesPerMessage = 8192;

}  // namespace

StreamCall::StreamCall(grpc::CallbackServerContext* context, Frontend* frontend,
                       const Options& options)
    : context_(context), frontend_(frontend), options_(options), deadline_(context->deadline()) {}

StreamCall* StreamCall::start(grpc::CallbackServerContext* context, Frontend& frontend,
                              const Options& options, int64_t bytes, Open open) {
  std::shared_ptr<StreamCall> call(new StreamCall(context, &frontend, options));
  call->self_ = call;
  const bool posted = frontend.post([call, open = std::move(open)] { call->open(open); }, bytes);
  if (!posted) {
    context->AddTrailingMetadata("retry-after-ms", std::to_string(options.retry_after_ms));
    call->finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "too many requests wait to be read"});
  }
  return call.get();
}

StreamCall* StreamCall::refuse(grpc::CallbackServerContext* context, const grpc::Status& status) {
  std::shared_ptr<StreamCall> call(new StreamCall(context, nullptr, {}));
  call->self_ = call;
  call->finish(status);
  return call.get();
}

void StreamCall::open(const Open& open) {
  if (options_.abort_on_cancel && !enter(State::kDriving)) return;
  const grpc::Status status = run_to_status([&] { stream_ = open(); });
  if (!status.ok()) {
    if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
      context_->AddTrailingMetadata("retry-after-ms", std::to_string(options_.retry_after_ms));
    }
    finish(status);
    return;
  }
  bool gone = false;
  {
    std::lock_guard lock(mutex_);
    request_id_ = stream_->request_id();
    gone = cancelled_;
  }
  if (gone) {
    if (options_.abort_on_cancel) frontend_->abort(stream_->request_id());
    finish(cancel_status());
    return;
  }
  stream_->on_give_up([weak = weak_from_this()] {
    if (const auto call = weak.lock()) call->leave();
  });
  to_message(*stream_, *event_.mutable_accepted());
  write(false);
}

void StreamCall::pump() {
  if (!enter(State::kDriving)) return;
  if (const auto delta = stream_->poll(kMaxEntriesPerMessage)) {
    event_.Clear();
    to_message(*delta, frontend_->tokenizer(), *event_.mutable_delta());
    write(stream_->ended());
    return;
  }
  if (!enter(State::kArmed)) return;
  stream_->arm([weak = weak_from_this()] {
    if (const auto call = weak.lock()) call->ready();
  });
}

void StreamCall::ready() {
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kArmed) return;
    state_ = State::kDriving;
  }
  pump();
}

bool StreamCall::enter(State next) {
  {
    std::lock_guard lock(mutex_);
    if (!cancelled_) {
      state_ = next;
      return true;
    }
  }
  finish(cancel_status());
  return false;
}

void StreamCall::write(bool last) {
  bool own = false;
  buffer_.Clear();  // Serialize() wants an empty one
  grpc::Status status =
      grpc::SerializationTraits<v1::GenerateEvent>::Serialize(event_, &buffer_, &own);
  if (!status.ok()) {
    finish(status);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    state_ = last ? State::kFinished : State::kWriting;
    if (last) request_id_.clear();  // nothing is left to abort; another request may take the id
  }
  if (last) {
    StartWriteAndFinish(&buffer_, {}, grpc::Status::OK);
  } else {
    StartWrite(&buffer_);
  }
}

void StreamCall::finish(const grpc::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (state_ == State::kFinished) return;
    state_ = State::kFinished;
  }
  Finish(status);
}

grpc::Status StreamCall::cancel_status() const {
  if (std::chrono::system_clock::now() >= deadline_) {
    return {grpc::StatusCode::DEADLINE_EXCEEDED, "the call's deadline has passed"};
  }
  return {grpc::StatusCode::CANCELLED, "the client cancelled the call"};
}

void StreamCall::OnWriteDone(bool ok) {
  const auto alive = shared_from_this();
  if (ok) {
    pump();
  } else {
    finish(cancel_status());  // OnCancel comes, or came, as well
  }
}

void StreamCall::OnCancel() {
  const auto alive = shared_from_this();
  std::string request_id;
  bool armed = false;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    request_id = request_id_;
    armed = state_ == State::kArmed;
    if (armed) state_ = State::kFinished;
  }
  if (options_.abort_on_cancel && !request_id.empty()) frontend_->abort(request_id);
  if (armed) Finish(cancel_status());
}

// A write that a client does not take cannot be ended in any other way.
void StreamCall::leave() {
  {
    std::lock_guard lock(mutex_);
    request_id_.clear();  // it has ended, and another request may have taken the id
  }
  std::lock_guard lock(context_mutex_);
  if (!done_) context_->TryCancel();
}

void StreamCall::OnDone() {
  {
    std::lock_guard lock(context_mutex_);
    done_ = true;
  }
  self_.reset();
}

}  // namespace trireme
