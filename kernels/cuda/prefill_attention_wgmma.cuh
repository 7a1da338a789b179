// The PTX that only the Hopper kernel is written in: tensor copies, wgmma, named barriers and
// register budgets (PTX ISA 8.0, sm_90a).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/element.cuh"

namespace trireme::cuda::hopper {

// A box of a two-dimensional tensor map into shared memory; its bytes count on `barrier`.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, int column, int row,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Makes this thread's ordinary writes to shared memory visible to wgmma and tensor copies.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from reading or writing `values` on the wrong side of a wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// The low half of a matrix descriptor for 128-byte-swizzled tiles of 128-byte rows; the high half
// (swizzle, eight rows' stride) is the same for all. Made uniform over the warp, so that what is
// added to it needs no vector registers and products can follow each other closely. `leading`:
// bytes from one 64-column slab to the next, which only operands with contiguous N (V) need.
__device__ __forceinline__ uint32_t matrix_descriptor(uint32_t address, uint32_t leading) {
  return __shfl_sync(0xffffffffu, (leading >> 4 << 16) | ((address & 0x3ffff) >> 4), 0);
}
#define TRIREME_DESCRIPTOR_HIGH "0x40000040"  // swizzle mode 1, stride 1024 bytes

#define TRIREME_ACC8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

// d[64 x N] (+)= a[64 x 16] b[16 x N], a and b in shared memory, both with contiguous K.
__device__ __forceinline__ void wgmma_shared(float (&d)[32], uint32_t a, uint32_t b,
                                             bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 a, b;\n"
      "mov.b64 a, {%32, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "mov.b64 b, {%33, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TRIREME_ELEMENT_PTX "." TRIREME_ELEMENT_PTX
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31}, a, b, p, 1, 1, 0, 0;\n"
      "}\n"
      : TRIREME_ACC8(d, 0), TRIREME_ACC8(d, 8), TRIREME_ACC8(d, 16), TRIREME_ACC8(d, 24)
      : "r"(a), "r"(b), "r"(int{accumulate}));
}
__device__ __forceinline__ void wgmma_shared(float (&d)[64], uint32_t a, uint32_t b,
                                             bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 a, b;\n"
      "mov.b64 a, {%64, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "mov.b64 b, {%65, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TRIREME_ELEMENT_PTX "." TRIREME_ELEMENT_PTX
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "
      "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "
      "%63}, a, b, p, 1, 1, 0, 0;\n"
      "}\n"
      : TRIREME_ACC8(d, 0), TRIREME_ACC8(d, 8), TRIREME_ACC8(d, 16), TRIREME_ACC8(d, 24),
        TRIREME_ACC8(d, 32), TRIREME_ACC8(d, 40), TRIREME_ACC8(d, 48), TRIREME_ACC8(d, 56)
      : "r"(a), "r"(b), "r"(int{accumulate}));
}

// The same with a in registers; b with contiguous N if kTransposed.
template <bool kTransposed>
__device__ __forceinline__ void wgmma_registers(float (&d)[32], const uint32_t (&a)[4], uint32_t b,
                                                bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 b;\n"
      "mov.b64 b, {%36, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TRIREME_ELEMENT_PTX "." TRIREME_ELEMENT_PTX
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31}, {%32, %33, %34, %35}, b, p, 1, 1, %38;\n"
      "}\n"
      : TRIREME_ACC8(d, 0), TRIREME_ACC8(d, 8), TRIREME_ACC8(d, 16), TRIREME_ACC8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(int{accumulate}),
        "n"(int{kTransposed}));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma_registers(float (&d)[64], const uint32_t (&a)[4], uint32_t b,
                                                bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 b;\n"
      "mov.b64 b, {%68, " TRIREME_DESCRIPTOR_HIGH
      "};\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TRIREME_ELEMENT_PTX "." TRIREME_ELEMENT_PTX
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "
      "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "
      "%63}, {%64, %65, %66, %67}, b, p, 1, 1, %70;\n"
      "}\n"
      : TRIREME_ACC8(d, 0), TRIREME_ACC8(d, 8), TRIREME_ACC8(d, 16), TRIREME_ACC8(d, 24),
        TRIREME_ACC8(d, 32), TRIREME_ACC8(d, 40), TRIREME_ACC8(d, 48), TRIREME_ACC8(d, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(int{accumulate}),
        "n"(int{kTransposed}));
}

#undef TRIREME_ACC8
#undef TRIREME_DESCRIPTOR_HIGH

}  // namespace trireme::cuda::hopper
