#include "runtime/instance_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "runtime/instance_phase.h"
#include "runtime/memory.h"

namespace trireme {
namespace {

// Of what is left after weights and scratch, KV takes this much unless told otherwise.
constexpr double kKvShare = 0.5;
// On a GPU nothing else runs: KV takes all that the rest leaves. Before loading the rest is known
// in part: libraries, graphs and communication buffers are guessed. After the largest steps have
// run it is measured, and a margin is kept for what comes later (graphs of other sizes).
constexpr int64_t kDeviceGuess = int64_t{1} << 30;
constexpr int64_t kDeviceMargin = int64_t{384} << 20;

struct RankAccount {
  char host[64] = {};
  char source[32] = {};
  int64_t weights = 0;
  int64_t scratch = 0;
  int64_t least_kv = 0;
  int64_t wanted_kv = 0;
  int64_t host_available = 0;
  int64_t process_available = 0;
  int64_t device_available = -1;  // on a GPU, which holds all of the above

  bool on_device() const { return device_available >= 0; }
  int64_t fixed() const { return weights + scratch; }
};

struct HostAccount {
  int ranks = 0;
  int64_t weights = 0;
  int64_t scratch = 0;
  int64_t kv = 0;
  int64_t available = INT64_MAX;
  std::string source;

  int64_t fixed() const { return weights + scratch; }
};

int64_t kv_bytes(const MemoryNeeds& needs, const std::vector<int32_t>& blocks) {
  int64_t bytes = 0;
  for (size_t g = 0; g < blocks.size(); ++g) bytes += blocks[g] * needs.block_bytes[g];
  return bytes;
}

RankAccount account_of(const MemoryNeeds& needs) {
  const MemoryLimits limits = memory_limits();
  RankAccount account;
  gethostname(account.host, sizeof(account.host) - 1);
  std::strncpy(account.source, limits.host_source.c_str(), sizeof(account.source) - 1);
  account.weights = needs.weights;
  account.scratch = needs.scratch;
  account.least_kv = kv_bytes(needs, needs.least_blocks);
  account.wanted_kv = std::max<int64_t>(1, kv_bytes(needs, needs.wanted_blocks));
  account.host_available = limits.host;
  account.process_available = limits.process;
  if (needs.device) {
    account.device_available = room_on_device(*needs.device, needs.measured);
  }
  return account;
}

// The KV bytes that a rank must have for sure.
int64_t required_kv(int64_t least, int64_t wanted, int64_t kv_memory) {
  return kv_memory > 0 ? std::min(kv_memory, wanted) : least;
}
int64_t required_kv(const RankAccount& account, int64_t kv_memory) {
  return required_kv(account.least_kv, account.wanted_kv, kv_memory);
}

HostAccount host_of(const RankAccount& account, const std::vector<RankAccount>& all,
                    int64_t kv_memory) {
  HostAccount host;
  for (const RankAccount& other : all) {
    if (other.on_device() || std::strcmp(other.host, account.host) != 0) continue;
    ++host.ranks;
    host.weights += other.weights;
    host.scratch += other.scratch;
    host.kv += required_kv(other, kv_memory);
    if (other.host_available >= host.available) continue;
    host.available = other.host_available;
    host.source = other.source;
  }
  return host;
}

void check_host(const RankAccount& account, const HostAccount& host) {
  const int64_t needed = host.fixed() + host.kv;
  if (needed <= host.available) return;
  fail(ErrorCode::kResourceExhausted,
       "not enough memory on {}: {} rank{} need{} {} (weights {}, scratch {}, KV cache {}), "
       "available {} ({}), missing {}",
       account.host, host.ranks, host.ranks == 1 ? "" : "s", host.ranks == 1 ? "s" : "",
       format_bytes(needed), format_bytes(host.weights), format_bytes(host.scratch),
       format_bytes(host.kv), format_bytes(host.available), host.source,
       format_bytes(needed - host.available));
}

void check_process(size_t rank, const RankAccount& account, int64_t kv_memory) {
  const int64_t kv = required_kv(account, kv_memory);
  const int64_t needed = account.fixed() + kv;
  if (needed <= account.process_available) return;
  fail(ErrorCode::kResourceExhausted,
       "not enough memory on {}: rank {} needs {} (weights {}, scratch {}, KV cache {}), available "
       "{} (RLIMIT_AS), missing {}",
       account.host, rank, format_bytes(needed), format_bytes(account.weights),
       format_bytes(account.scratch), format_bytes(kv), format_bytes(account.process_available),
       format_bytes(needed - account.process_available));
}

void check_device(size_t rank, const RankAccount& account, const MemoryNeeds& needs) {
  const int64_t kv = required_kv(account, needs.kv_memory);
  const int64_t needed = account.fixed() + kv;
  if (needed <= account.device_available) return;
  fail(
      ErrorCode::kResourceExhausted,
      "not enough memory on the GPU of rank {} ({}): {} needed (weights {}, workspace {}, KV cache "
      "{}), {} available, missing {}{}{}",
      rank, account.host, format_bytes(needed), format_bytes(account.weights),
      format_bytes(account.scratch), format_bytes(kv), format_bytes(account.device_available),
      format_bytes(needed - account.device_available), needs.advice ? "; " : "",
      needs.advice ? needs.advice() : "");
}

// The part of its wanted blocks that a rank can hold.
double holdable(const RankAccount& account, const HostAccount& host, int64_t kv_memory) {
  double budget = static_cast<double>(kv_memory);
  if (kv_memory <= 0 && account.on_device()) {
    budget = static_cast<double>(account.device_available - account.fixed());
  } else if (kv_memory <= 0) {
    const double host_left = static_cast<double>(host.available - host.fixed()) / host.ranks;
    const auto process_left = static_cast<double>(account.process_available - account.fixed());
    budget = kKvShare * std::min(host_left, process_left);
  }
  return std::min(1.0, budget / static_cast<double>(account.wanted_kv));
}

}  // namespace

int64_t room_on_device(const DeviceMemory& device, bool measured) {
  return std::max<int64_t>(0, device.free - (measured ? kDeviceMargin : kDeviceGuess));
}

int64_t required_bytes(const MemoryNeeds& needs) {
  return needs.weights + needs.scratch +
         required_kv(kv_bytes(needs, needs.least_blocks), kv_bytes(needs, needs.wanted_blocks),
                     needs.kv_memory);
}

std::vector<int32_t> agree_on_kv_blocks(Communicator& control, const MemoryNeeds& needs) {
  RankAccount mine;
  together(control, [&] { mine = account_of(needs); });
  std::vector<RankAccount> all(static_cast<size_t>(control.size()));
  control.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  double share = 1.0;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const RankAccount& account = all[rank];
    if (needs.kv_memory > 0 && account.least_kv > std::min(needs.kv_memory, account.wanted_kv)) {
      fail(ErrorCode::kInvalidArgument,
           "kv_memory: {} on rank {} hold too few tokens, {} are needed at least",
           format_bytes(needs.kv_memory), rank, format_bytes(account.least_kv));
    }
    const HostAccount host = host_of(account, all, needs.kv_memory);
    if (account.on_device()) {
      check_device(rank, account, needs);
    } else {
      check_host(account, host);
      check_process(rank, account, needs.kv_memory);
    }
    share = std::min(share, holdable(account, host, needs.kv_memory));
  }
  std::vector<int32_t> blocks;
  for (size_t g = 0; g < needs.wanted_blocks.size(); ++g) {
    const auto some = static_cast<int32_t>(share * needs.wanted_blocks[g]);
    blocks.push_back(std::max(some, needs.least_blocks[g]));
  }
  return blocks;
}

}  // namespace trireme
