#include "parallel/mpi_link.h"

#include <algorithm>
#include <cstring>

namespace trireme {

void check_mpi(int result, const std::string& name, const char* operation, int peer, size_t bytes) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(result, text, &length) != MPI_SUCCESS) length = 0;
  fail(ErrorCode::kUnavailable, "{}: {} of {} bytes, peer rank {}: MPI: {}", name, operation, bytes,
       peer, std::string(text, static_cast<size_t>(length)));
}

MpiProcess::~MpiProcess() {
  // What still waits belongs to a world that ended early. MPI may read these bytes until
  // MPI_Finalize or MPI_Abort, so they outlive this object.
  if (!pending_.empty()) new std::deque<Pending>(std::move(pending_));
}

std::string MpiProcess::reason() {
  std::lock_guard lock(mutex_);
  return reason_;
}

void MpiProcess::add_group(std::weak_ptr<SharedGroup> group) {
  std::lock_guard lock(mutex_);
  std::erase_if(groups_, [](const auto& entry) { return entry.expired(); });
  groups_.push_back(std::move(group));
}

void MpiProcess::abort(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (aborted_.load()) return;
  reason_ = reason;
  aborted_.store(true);
  for (const auto& entry : groups_) {
    if (const auto group = entry.lock()) group->abort(reason);
  }
}

void MpiProcess::look_for_abort() {
  std::string reason;
  bool found = false;
  {
    std::lock_guard lock(mutex_);
    for (const auto& entry : groups_) {
      const auto group = entry.lock();
      if (group && group->aborted(reason)) found = true;
    }
  }
  if (found) abort(reason);
}

void MpiProcess::send(MPI_Comm comm, std::span<const std::byte> data, int to, int tag,
                      const std::string& name) {
  Pending& entry = pending_.emplace_back();
  if (!spare_.empty()) {
    entry.data.swap(spare_.back());
    spare_.pop_back();
  }
  entry.data.assign(data.begin(), data.end());
  const int result = MPI_Isend(entry.data.data(), static_cast<int>(data.size()), MPI_BYTE, to, tag,
                               comm, &entry.request);
  if (result != MPI_SUCCESS) {
    pending_.pop_back();
    check_mpi(result, name, "send", to, data.size());
  }
  pending_bytes_ += data.size();
  progress();
}

void MpiProcess::progress() {
  if (pending_.empty()) {
    int flag = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_SELF, &flag, MPI_STATUS_IGNORE);
    return;
  }
  // All of them: one peer that does not receive must not hold back the account of the others.
  size_t kept = 0;
  for (Pending& entry : pending_) {
    int done = 0;
    // An error is a peer that is gone; whoever waits for it learns of that by its own deadline.
    if (MPI_Test(&entry.request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done) {
      retire(entry);
    } else {
      std::swap(pending_[kept++], entry);
    }
  }
  pending_.resize(kept);
}

void MpiProcess::retire(Pending& entry) {
  pending_bytes_ -= entry.data.size();
  if (entry.data.capacity() <= kMaxKept && spare_.size() < 32) {
    spare_.push_back(std::move(entry.data));
  }
}

MpiLink::MpiLink(MPI_Comm comm, std::string name, std::shared_ptr<MpiProcess> process)
    : name_(std::move(name)), process_(std::move(process)) {
  check(MPI_Comm_dup(comm, &comm_), "communicator", -1, 0);
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiLink::~MpiLink() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // After an abort MPI may still hold requests on it: let the end of the process free it.
  if (!finalized && !process_->aborted() && process_->idle()) MPI_Comm_free(&comm_);
}

void MpiLink::check_open(const char* operation) const {
  if (!process_->aborted()) return;
  fail(ErrorCode::kAborted, "{}: {}: aborted: {}", name_, operation, process_->reason());
}

void MpiLink::fail_late(const char* operation, int peer, size_t bytes) const {
  fail(ErrorCode::kDeadlineExceeded, "{}: rank {} of {}: {} of {} bytes from rank {}: waited {} ms",
       name_, rank_, size_, operation, bytes, peer, limit_.count());
}

void MpiLink::post_recv(const char* operation, std::span<std::byte> data, int from, int tag) {
  posted_.push_back(MPI_REQUEST_NULL);
  peers_.push_back(from);
  expects_.push_back(static_cast<int64_t>(data.size()));
  check(MPI_Irecv(data.data(), static_cast<int>(data.size()), MPI_BYTE, from, tag, comm_,
                  &posted_.back()),
        operation, from, data.size());
}

void MpiLink::post_send(const char* operation, std::span<const std::byte> data, int to, int tag) {
  posted_.push_back(MPI_REQUEST_NULL);
  peers_.push_back(to);
  expects_.push_back(-1);
  check(MPI_Isend(data.data(), static_cast<int>(data.size()), MPI_BYTE, to, tag, comm_,
                  &posted_.back()),
        operation, to, data.size());
}

void MpiLink::wait_posted(const char* operation, size_t bytes) {
  statuses_.resize(posted_.size());
  int first = peers_.empty() ? rank_ : peers_[0];
  try {
    wait(operation, first, bytes, [&] {
      int done = 0;
      const int result =
          MPI_Testall(static_cast<int>(posted_.size()), posted_.data(), &done, statuses_.data());
      check(result, operation, first, bytes);
      return done != 0;
    });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kDeadlineExceeded) throw;
    std::string missing;
    for (size_t i = 0; i < posted_.size(); ++i) {
      int done = 0;
      MPI_Test(&posted_[i], &done, MPI_STATUS_IGNORE);
      if (!done) missing += fmt::format(" {}", peers_[i]);
    }
    fail(ErrorCode::kDeadlineExceeded, "{}: rank {} of {}: {} of {} bytes: waited {} ms for rank{}",
         name_, rank_, size_, operation, bytes, limit_.count(), missing);
  }
  for (size_t i = 0; i < expects_.size(); ++i) {
    int got = 0;
    if (expects_[i] < 0) continue;
    MPI_Get_count(&statuses_[i], MPI_BYTE, &got);
    if (got == expects_[i]) continue;
    fail(ErrorCode::kInternal, "{}: mismatch: rank {} is in {} of {} bytes, rank {} sent {}", name_,
         rank_, operation, expects_[i], peers_[i], got);
  }
  posted_.clear();
  peers_.clear();
  expects_.clear();
}

}  // namespace trireme
