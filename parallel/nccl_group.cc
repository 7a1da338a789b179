#include "parallel/nccl_group.h"

#include <exception>
#include <future>

#include "base/log.h"
#include "parallel/nccl_check.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kCloseLimit{6'000};
constexpr std::chrono::milliseconds kAbortLimit{1'000};

ncclConfig_t nonblocking(const std::string& name) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = name.c_str();
  return config;
}

void close(ncclComm_t comm) {
  ncclResult_t result = ncclCommFinalize(comm);
  const auto start = Clock::now();
  do {
    std::this_thread::yield();
    if (ncclCommGetAsyncError(comm, &result) != ncclSuccess) break;
  } while (result == ncclInProgress && Clock::now() - start < kCloseLimit / 2);
  if (result == ncclSuccess) {
    ncclCommDestroy(comm);
  } else {
    ncclCommAbort(comm);
  }
}

// NCCL frees device memory when it aborts, and that waits for kernels, which may wait for a peer in
// another communicator of the family: so all of them are told to end before one is freed.
void abort_all(const std::vector<ncclComm_t>& comms) {
  ncclGroupStart();
  for (ncclComm_t comm : comms) ncclCommAbort(comm);
  ncclGroupEnd();
}

// Closes or aborts in a thread of its own, since NCCL does not return before the last graph that
// was captured with a communicator is gone. False if that took longer than `limit`: the thread
// stays.
bool end(std::vector<ncclComm_t> comms, bool orderly, std::chrono::milliseconds limit) {
  auto done = std::make_shared<std::promise<void>>();
  auto ended = done->get_future();
  std::thread([done, comms = std::move(comms), orderly] {
    if (orderly) {
      for (ncclComm_t comm : comms) close(comm);
    } else {
      abort_all(comms);
    }
    done->set_value();
  }).detach();
  return ended.wait_for(limit) == std::future_status::ready;
}

}  // namespace

NcclGroup::NcclGroup(std::shared_ptr<NcclFamily> family, std::string name, int rank, int size,
                     int device)
    : family_(std::move(family)),
      name_(std::move(name)),
      rank_(rank),
      size_(size),
      device_(device) {}

NcclGroup::~NcclGroup() {
  if (comm_ == nullptr) return;
  // While an error unwinds, the peers may be anywhere: do not wait for them.
  const bool orderly = std::uncaught_exceptions() == 0 && reason_.empty();
  if (!end({comm_}, orderly, orderly ? kCloseLimit : kAbortLimit)) {
    log::warn("{}: NCCL's communicator is left to itself: a graph captured with it is still there",
              name_);
  }
}

void NcclGroup::start(const ncclUniqueId& id) {
  check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  const NcclCall what{};
  ncclConfig_t config = nonblocking(name_);
  ncclResult_t result = ncclSuccess;
  {
    std::lock_guard lock(mutex_);
    check_open(what);
    result = ncclCommInitRankConfig(&comm_, size_, id, rank_, &config);
  }
  finish(what, result);
}

std::shared_ptr<NcclGroup> NcclGroup::split(int color, const std::string& name, int blocks) {
  // The rank among those of the same color is not known before NCCL has split: count it here.
  auto child = std::make_shared<NcclGroup>(family_, name, 0, 1, device_);
  child->set_limit(limit_);
  ncclConfig_t config = nonblocking(child->name_);
  if (blocks > 0) {
    config.minCTAs = 1;
    config.maxCTAs = blocks;
  }
  const NcclCall what{"split", 0, -1};
  run(what,
      [&](ncclComm_t comm) { return ncclCommSplit(comm, color, rank_, &child->comm_, &config); });
  child->poll(what, [&] { return child->state(what) != ncclInProgress; });
  check_nccl(ncclCommUserRank(child->comm_, &child->rank_), "ncclCommUserRank");
  check_nccl(ncclCommCount(child->comm_, &child->size_), "ncclCommCount");
  std::lock_guard lock(family_->mutex);
  family_->groups.push_back(child);
  return child;
}

void NcclGroup::check_open(const NcclCall& what) const {
  if (!reason_.empty()) {
    fail(ErrorCode::kAborted, "{}: {}: aborted: {}", name_, what.operation, reason_);
  }
}

// NCCL's word on the communicator: success, still at work, or what went wrong.
ncclResult_t NcclGroup::state(const NcclCall& what) {
  std::lock_guard lock(mutex_);
  check_open(what);
  ncclResult_t result = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
  return asked == ncclSuccess ? result : asked;
}

// Whether a call has left work behind is the communicator's word: some calls return success at
// once.
void NcclGroup::finish(const NcclCall& what, ncclResult_t result) {
  if (result == ncclInProgress || result == ncclSuccess) {
    poll(what, [&] {
      result = state(what);
      return result != ncclInProgress;
    });
  }
  if (result == ncclSuccess) return;
  give_up(what, ErrorCode::kUnavailable,
          fmt::format("NCCL: {}: {}", ncclGetErrorString(result), ncclGetLastError(nullptr)));
}

void NcclGroup::check(const NcclCall& what) {
  const ncclResult_t result = state(what);
  if (result != ncclSuccess && result != ncclInProgress) {
    give_up(what, ErrorCode::kUnavailable,
            fmt::format("NCCL: {}: {}", ncclGetErrorString(result), ncclGetLastError(nullptr)));
  }
  if (family_->host == nullptr) return;
  try {
    family_->host->check();
  } catch (const Error& error) {
    abort(error.what());
    throw;
  }
}

void NcclGroup::give_up(const NcclCall& what, ErrorCode code, const std::string& why) {
  const std::string text = fmt::format("rank {} of {}: {}: {}", rank_, size_, what.text(), why);
  abort(text);
  fail(code, "{}: {}", name_, text);
}

// The kernels of all groups end soon after this returns, and usually before.
void NcclGroup::abort(const std::string& reason) {
  std::vector<std::shared_ptr<NcclGroup>> groups;
  {
    std::lock_guard lock(family_->mutex);
    for (const auto& member : family_->groups) {
      if (auto group = member.lock()) groups.push_back(std::move(group));
    }
    for (const auto& one : family_->stops) {
      if (const auto stop = one.lock()) stop->raise();
    }
  }
  std::vector<ncclComm_t> comms;
  for (const auto& group : groups) {
    std::lock_guard lock(group->mutex_);
    if (!group->reason_.empty()) continue;
    group->reason_ = reason.empty() ? "no reason given" : reason;
    if (group->comm_ != nullptr) comms.push_back(group->comm_);
    group->comm_ = nullptr;
  }
  if (!comms.empty()) end(std::move(comms), false, kAbortLimit);
}

}  // namespace trireme
