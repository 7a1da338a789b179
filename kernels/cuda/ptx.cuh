// The PTX instructions that more than one kernel is written in: asynchronous copies, matrix
// fragments, products, barriers in shared memory. What only Hopper's prefill kernel needs is in
// prefill_attention_wgmma.cuh. Shared memory is addressed by 32-bit addresses of its window.
#pragma once

#include <cstdint>

#include "kernels/cuda/element.cuh"

namespace trireme::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- Copies from global to shared memory. Not `valid`: zeros are written, and nothing is read.

// For what is read once, weights: the first to leave the L2 cache.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void copy_16_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_16_async(uint32_t to, const void* from, bool valid,
                                              uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to),
               "l"(from), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// Has the L2 cache bring 128 bytes: for rows whose other parts are asked for next.
__device__ __forceinline__ void copy_16_of_128_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// A branch in place of a size: cheaper where a whole warp is mostly of one mind.
__device__ __forceinline__ void copy_16_async_or_zero(uint32_t to, const void* from, bool valid) {
  if (valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
  }
}

__device__ __forceinline__ void copy_4_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}

__device__ __forceinline__ void end_copy_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wait_for_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Matrix fragments (PTX ISA, mma.m16n8k16) and their product.

// Four 8 x 8 matrices of 16-bit values; lanes 8i to 8i + 7 give the rows' addresses of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

#define TRIREME_MULTIPLY_ADD                                                           \
  "mma.sync.aligned.m16n8k16.row.col.f32." TRIREME_ELEMENT_PTX "." TRIREME_ELEMENT_PTX \
  ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "                                          \
  "{%8, %9}, {%0, %1, %2, %3};"

// c[16][8] += a[16][16] b[16][8], sums in float32. Lane 4g + t holds c[g][2t, 2t + 1] and
// c[g + 8][2t, 2t + 1]. In the order written, as the loads before it are.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(TRIREME_MULTIPLY_ADD
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same where the compiler may move it.
__device__ __forceinline__ void multiply_add(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm(TRIREME_MULTIPLY_ADD
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#undef TRIREME_MULTIPLY_ADD

// ---- Barriers in shared memory, on which the copy engine's bytes count; for sm_90 only.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barriers_visible_to_copies() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Holds until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ended%=;\n"
      "bra again%=;\n"
      "ended%=:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Consecutive bytes, a multiple of 16, that count on `barrier`.
__device__ __forceinline__ void copy_bulk_async(uint32_t to, const void* from, int bytes,
                                                uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// ---- The rest.

// 2^x: two units in the last place, -inf gives 0, NaN stays NaN; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Adds 1, or goes from `most` to 0, and gives the value before. What this thread's warp wrote
// before is visible to whoever sees the new value, and what others wrote before theirs to this
// thread.
__device__ __forceinline__ unsigned increment_wrapping(unsigned* at, unsigned most) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(at), "r"(most)
               : "memory");
  return before;
}

}  // namespace trireme::cuda
