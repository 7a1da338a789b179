// A vector for arrays of many megabytes that are read at random: on huge pages where the system has
// them, so that an access costs no page walk.
#pragma once

#include <cstddef>
#include <vector>

namespace trireme {

// Aligned memory, on transparent huge pages from 4 MiB on. Throws kResourceExhausted.
void* allocate_pages(size_t bytes);
void free_pages(void* memory);

template <typename T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <typename U>
  PageAllocator(const PageAllocator<U>&) {}  // NOLINT: as allocators do

  T* allocate(size_t count) { return static_cast<T*>(allocate_pages(count * sizeof(T))); }
  void deallocate(T* memory, size_t) { free_pages(memory); }
  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
};

template <typename T>
using HugeVector = std::vector<T, PageAllocator<T>>;

}  // namespace trireme
