// Programmatic dependent launch: a kernel's blocks are there before the kernel before it has ended.
// Compiles to nothing for chips older than sm_90.
#pragma once

namespace trireme::cuda {

// Until every kernel before this one in the stream is complete and its writes are visible: nothing
// of theirs may be touched, or written over, before.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start once all blocks of this one have said so; it waits as above before it
// touches anything that this one writes.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace trireme::cuda
