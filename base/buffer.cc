#include "base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>

#include "base/error.h"
#include "base/huge_vector.h"

namespace trireme {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
}  // namespace

void* allocate_pages(size_t bytes) {
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  auto* memory = rounded < bytes ? nullptr : std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) fail(ErrorCode::kResourceExhausted, "cannot allocate {} bytes", bytes);
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
  return memory;
}

void free_pages(void* memory) { std::free(memory); }

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  owner_ = std::shared_ptr<void>(allocate_pages(bytes), free_pages);
  data_ = static_cast<std::byte*>(owner_.get());
}

}  // namespace trireme
