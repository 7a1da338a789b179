#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include <fmt/core.h>

#include "parallel/shared_group.h"
#include "parallel/socket.h"

namespace trireme {
namespace {

std::byte* map(int fd, size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

}  // namespace

void SharedMemory::Unmap::operator()(std::byte* data) const { munmap(data, bytes); }

SharedMemory SharedMemory::create(size_t bytes, std::string& name) {
  std::random_device random;
  name = fmt::format("/trireme-{}-{:08x}{:08x}", getpid(), random(), random());
  const Socket file(shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
  if (!file.open()) return {};
  // Allocated now: a full /dev/shm is an answer here and would be a SIGBUS later.
  std::byte* data = posix_fallocate(file.fd(), 0, static_cast<off_t>(bytes)) == 0
                        ? map(file.fd(), bytes)
                        : nullptr;
  if (data == nullptr) unlink(name);
  return {data, bytes};
}

SharedMemory SharedMemory::open(const std::string& name, size_t bytes) {
  const Socket file(shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0));
  if (!file.open()) return {};
  return {map(file.fd(), bytes), bytes};
}

void SharedMemory::unlink(const std::string& name) { shm_unlink(name.c_str()); }

}  // namespace trireme
