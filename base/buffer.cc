#include "base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>

#include "base/error.h"

namespace trireme {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  auto* pointer = rounded < bytes ? nullptr : std::aligned_alloc(alignment, rounded);
  if (pointer == nullptr) fail(ErrorCode::kResourceExhausted, "cannot allocate {} bytes", bytes);
  if (alignment == kHugePage) madvise(pointer, rounded, MADV_HUGEPAGE);
  owner_ = std::shared_ptr<void>(pointer, [](void* memory) { std::free(memory); });
  data_ = static_cast<std::byte*>(pointer);
}

}  // namespace trireme
