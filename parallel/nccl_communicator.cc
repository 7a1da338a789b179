#include "parallel/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "parallel/nccl_check.h"
#include "parallel/nccl_group.h"

namespace trireme {
namespace {

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return ncclFloat32;
    case DType::kF16: return ncclFloat16;
    case DType::kBF16: return ncclBfloat16;
  }
  fail(ErrorCode::kUnimplemented, "NCCL: all_reduce_sum of dtype {}", static_cast<int>(dtype));
}

cudaStream_t native(StreamHandle stream) { return static_cast<cudaStream_t>(stream.native); }

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  StreamHandle handle() const { return {stream_}; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Device memory mapped by all ranks, as long as the communicator lives.
class SymmetricMemory {
 public:
  SymmetricMemory(std::shared_ptr<NcclGroup> group, size_t bytes) : group_(std::move(group)) {
    const size_t page = NCCL_WIN_REQUIRED_ALIGNMENT;
    const size_t rounded = std::max(page, (bytes + page - 1) / page * page);
    const ncclResult_t result = ncclMemAlloc(&data_, rounded);
    if (result != ncclSuccess) {
      fail(ErrorCode::kResourceExhausted, "{}: {} bytes of device memory: NCCL: {}: {}",
           group_->name(), rounded, ncclGetErrorString(result), ncclGetLastError(nullptr));
    }
    try {
      check_cuda(cudaMemset(data_, 0, rounded), "cudaMemset");
      check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
      group_->run({"window", rounded, -1}, [&](ncclComm_t comm) {
        return ncclCommWindowRegister(comm, data_, rounded, &window_, NCCL_WIN_COLL_SYMMETRIC);
      });
    } catch (...) {
      ncclMemFree(data_);
      throw;
    }
  }
  ~SymmetricMemory() {
    cudaSetDevice(group_->device());
    group_->if_open([&](ncclComm_t comm) {
      if (window_ != nullptr) ncclCommWindowDeregister(comm, window_);
    });
    ncclMemFree(data_);
  }
  SymmetricMemory(const SymmetricMemory&) = delete;
  SymmetricMemory& operator=(const SymmetricMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  std::shared_ptr<NcclGroup> group_;
  void* data_ = nullptr;
  ncclWindow_t window_ = nullptr;
};

class NcclCommunicator final : public DeviceCommunicator {
 public:
  explicit NcclCommunicator(std::shared_ptr<NcclGroup> group) : group_(std::move(group)) {
    check_cuda(cudaSetDevice(group_->device()), "cudaSetDevice");
    void* scratch = nullptr;
    check_cuda(cudaMalloc(&scratch, kWarmUpBytes), "cudaMalloc");
    scratch_.reset(scratch);
    check_cuda(cudaMemset(scratch, 0, kWarmUpBytes), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    warm_up(scratch, kWarmUpBytes);
  }

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  const std::string& name() const override { return group_->name(); }

  void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) override;
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                  StreamHandle stream) override;
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream) override;
  void barrier() override;
  void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream) override;
  void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream) override;
  int64_t probe(int, int, Wait) override {
    fail(ErrorCode::kUnimplemented, "{}: probe: device memory has no messages to look at", name());
  }

  std::unique_ptr<DeviceCommunicator> split_device(int color, const std::string& name,
                                                   int blocks) override {
    if (color < 0) fail(ErrorCode::kInvalidArgument, "{}: split: color {}", this->name(), color);
    check_cuda(cudaSetDevice(group_->device()), "cudaSetDevice");
    return std::make_unique<NcclCommunicator>(group_->split(color, name, blocks));
  }
  void set_agreement(uint64_t) override {}
  void set_deadline(std::chrono::milliseconds limit) override { group_->set_limit(limit); }
  void abort(const std::string& reason) override { group_->abort(reason); }
  void check() override { group_->check(last_); }

  Buffer allocate_symmetric(size_t bytes) override;
  std::optional<PeerBuffers> map_peers(Communicator& host, size_t bytes, std::string& why) override;
  std::string identity() const override;
  void wait(StreamHandle stream) override;

 private:
  static constexpr size_t kWarmUpBytes = 4 << 20;

  void warm_up(void* zeros, size_t bytes);
  void check_peer(const char* operation, int peer) const;
  template <typename Call>
  void queue(const NcclCall& what, Call call) {
    last_ = what;
    group_->run(what, call);
  }

  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  std::shared_ptr<NcclGroup> group_;
  Stream stream_;                        // of barriers and warm-ups
  std::unique_ptr<void, Free> scratch_;  // zeros: their sums are zeros
  NcclCall last_;
};

// NCCL connects peers when an algorithm is first used, which cannot be inside a capture. The sizes
// lead to its algorithms for short, middling and long vectors.
void NcclCommunicator::warm_up(void* zeros, size_t bytes) {
  for (size_t part = 64; part <= bytes; part *= 64) {
    all_reduce_sum(zeros, static_cast<int64_t>(part / 2), DType::kBF16, stream_.handle());
  }
  all_reduce_sum(zeros, static_cast<int64_t>(bytes / 2), DType::kBF16, stream_.handle());
  wait(stream_.handle());
}

void NcclCommunicator::check_peer(const char* operation, int peer) const {
  if (peer < 0 || peer >= size()) {
    fail(ErrorCode::kInvalidArgument, "{}: {}: no rank {} in a world of {}", name(), operation,
         peer, size());
  }
}

void NcclCommunicator::all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream) {
  if (count < 0) {
    fail(ErrorCode::kInvalidArgument, "{}: all_reduce_sum of {} elements", name(), count);
  }
  // In symmetric memory NCCL 2.28.9 gives wrong sums of 16-bit numbers at odd multiples of 2 bytes.
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    fail(ErrorCode::kInvalidArgument, "{}: all_reduce_sum at {}: not aligned to 16 bytes", name(),
         data);
  }
  if (count == 0) return;
  const auto type = nccl_type(dtype);
  const auto elements = static_cast<size_t>(count);
  queue({"all_reduce_sum", elements * size_of(dtype), -1}, [&](ncclComm_t comm) {
    return ncclAllReduce(data, data, elements, type, ncclSum, comm, native(stream));
  });
}

void NcclCommunicator::all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                                  StreamHandle stream) {
  if (out.size() != in.size() * static_cast<size_t>(size())) {
    fail(ErrorCode::kInvalidArgument, "{}: all_gather: out has {} bytes, in {} on each of {} ranks",
         name(), out.size(), in.size(), size());
  }
  if (in.empty()) return;
  queue({"all_gather", in.size(), -1}, [&](ncclComm_t comm) {
    return ncclAllGather(in.data(), out.data(), in.size(), ncclUint8, comm, native(stream));
  });
}

void NcclCommunicator::broadcast(std::span<std::byte> data, int root, StreamHandle stream) {
  check_peer("broadcast", root);
  if (data.empty()) return;
  queue({"broadcast", data.size(), root}, [&](ncclComm_t comm) {
    return ncclBroadcast(data.data(), data.data(), data.size(), ncclUint8, root, comm,
                         native(stream));
  });
}

void NcclCommunicator::barrier() {
  check_cuda(cudaSetDevice(group_->device()), "cudaSetDevice");
  queue({"barrier", 0, -1}, [&](ncclComm_t comm) {
    return ncclAllReduce(scratch_.get(), scratch_.get(), 1, ncclFloat32, ncclSum, comm,
                         native(stream_.handle()));
  });
  wait(stream_.handle());
}

void NcclCommunicator::send(std::span<const std::byte> data, int to, int, StreamHandle stream) {
  check_peer("send", to);
  if (to == rank()) {
    fail(ErrorCode::kUnimplemented, "{}: send: rank {} sends to itself", name(), to);
  }
  if (data.empty()) return;
  queue({"send", data.size(), to}, [&](ncclComm_t comm) {
    return ncclSend(data.data(), data.size(), ncclUint8, to, comm, native(stream));
  });
}

void NcclCommunicator::recv(std::span<std::byte> data, int from, int, StreamHandle stream) {
  check_peer("recv", from);
  if (from == rank()) {
    fail(ErrorCode::kUnimplemented, "{}: recv: rank {} receives from itself", name(), from);
  }
  if (data.empty()) return;
  queue({"recv", data.size(), from}, [&](ncclComm_t comm) {
    return ncclRecv(data.data(), data.size(), ncclUint8, from, comm, native(stream));
  });
}

Buffer NcclCommunicator::allocate_symmetric(size_t bytes) {
  check_cuda(cudaSetDevice(group_->device()), "cudaSetDevice");
  auto memory = std::make_shared<SymmetricMemory>(group_, bytes);
  std::byte* data = memory->data();
  warm_up(data, bytes);
  return {data, bytes, std::move(memory)};
}

std::optional<PeerBuffers> NcclCommunicator::map_peers(Communicator& host, size_t bytes,
                                                       std::string& why) {
  auto stop = std::make_shared<StopFlag>();
  {
    std::lock_guard lock(group_->family()->mutex);
    group_->family()->stops.push_back(stop);
  }
  group_->check({"map_peers", bytes, -1});  // an abort before that would not have reached it
  return map_peer_memory(host, group_->device(), bytes, std::move(stop), why);
}

std::string NcclCommunicator::identity() const {
  cudaDeviceProp properties{};
  int nccl = 0;
  check_cuda(cudaGetDeviceProperties(&properties, group_->device()), "cudaGetDeviceProperties");
  check_nccl(ncclGetVersion(&nccl), "ncclGetVersion");
  std::string driver;
  std::ifstream file("/proc/driver/nvidia/version");
  std::getline(file, driver);
  return fmt::format("{} x {}, {}, NCCL {}", size(), properties.name, driver, nccl);
}

void NcclCommunicator::wait(StreamHandle stream) {
  check_cuda(cudaSetDevice(group_->device()), "cudaSetDevice");
  group_->poll(last_, [&] {
    const cudaError_t status = cudaStreamQuery(native(stream));
    if (status != cudaErrorNotReady) check_cuda(status, "the stream's work");
    return status == cudaSuccess;
  });
}

}  // namespace

std::unique_ptr<DeviceCommunicator> start_nccl_communicator(Communicator& group, int device,
                                                            const std::string& name) {
  // A failure of rank 0 alone must not leave the others waiting for an id.
  struct Opening {
    ncclUniqueId id;
    char error[512];
  } opening{};
  if (group.rank() == 0) {
    try {
      check_nccl(ncclGetUniqueId(&opening.id), "ncclGetUniqueId");
    } catch (const Error& error) {
      std::strncpy(opening.error, error.what(), sizeof opening.error - 1);
    }
  }
  group.broadcast(std::as_writable_bytes(std::span(&opening, 1)), 0);
  if (opening.error[0] != 0) fail(ErrorCode::kUnavailable, "{}: {}", name, opening.error);
  auto family = std::make_shared<NcclFamily>();
  family->host = &group;
  auto nccl = std::make_shared<NcclGroup>(family, name, group.rank(), group.size(), device);
  family->groups.push_back(nccl);
  nccl->start(opening.id);
  return std::make_unique<NcclCommunicator>(std::move(nccl));
}

}  // namespace trireme
