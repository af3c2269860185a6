// Hopper's asynchronous copies into shared memory, and products of warpgroups with operand A in
// registers (compiled for sm_90a).
//
// Macros that wgmma.py defines for products of WGMMA_COLUMNS columns: WGMMA_SHAPE, WGMMA_SUMS,
// WGMMA_INPUTS (the instruction's text) and WGMMA_OPERANDS(sums).

#pragma once

#include "warpgroup.cuh"

namespace moxin {

// A wait of more clock cycles than this is an error of a kernel, which would otherwise never end.
constexpr long long MAX_WAIT = 20000000000LL;

__device__ inline unsigned int shared_address(const void* pointer) {
  return static_cast<unsigned int>(__cvta_generic_to_shared(pointer));
}

// Barriers in shared memory. A phase ends after `count` arrivals and all expected bytes.
__device__ inline void init_barrier(unsigned int barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}

// Makes initialised barriers visible to asynchronous copies.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

__device__ inline void arrive_expecting(unsigned int barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline void arrive(unsigned int barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}

// Arrives, without having been counted as pending, when this thread's copies by copy_async are done.
__device__ inline void arrive_after_copies(unsigned int barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
               :
               : "r"(barrier)
               : "memory");
}

__device__ inline bool has_ended(unsigned int barrier, unsigned int parity) {
  unsigned int ended;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended;
}

// Waits until the phase with this parity (0 for the first one) has ended.
__device__ inline void wait_barrier(unsigned int barrier, unsigned int parity) {
  if (has_ended(barrier, parity)) return;
  long long start = clock64();
  while (!has_ended(barrier, parity)) {
    if (clock64() - start > MAX_WAIT) asm volatile("trap;");
  }
}

// Copies contiguous bytes (a multiple of 16), which count for a barrier.
__device__ inline void copy_bulk(
    unsigned int to, const void* from, int bytes, unsigned int barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(to), "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Moves registers between a block's warpgroups: COUNT per thread from now on.
template <int COUNT>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(COUNT));
}

template <int COUNT>
__device__ inline void request_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(COUNT));
}

// B in shared memory without swizzling, for multiply_wide: matrices of eight columns and 16 bytes, 128
// consecutive bytes each, that are `next` bytes apart along K and `down` bytes along the columns.
__device__ inline unsigned long long describe_rows(unsigned int address, int next, int down) {
  return (address & 0x3ffff) >> 4 | static_cast<unsigned long long>(next >> 4) << 16 |
         static_cast<unsigned long long>(down >> 4) << 32;
}

// What ordinary stores wrote into shared memory becomes visible to the tensor cores.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// sums [64, WGMMA_COLUMNS] += a [64, 16] times the transpose of b [WGMMA_COLUMNS, 16], by a warpgroup.
// Warp w has rows 16 w to 16 w + 15 of sums and a, as mma m16n8k16 has them.
template <typename T>
__device__ inline void multiply_wide(float* sums, const unsigned int* a, unsigned long long b);

#define MOXIN_WGMMA(TYPE)                                                                        \
  asm volatile("wgmma.mma_async.sync.aligned." WGMMA_SHAPE ".f32." TYPE "." TYPE                 \
               " {" WGMMA_SUMS "}, " WGMMA_INPUTS ", 1, 1, 1, 0;"                                \
               : WGMMA_OPERANDS(sums)                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <>
__device__ inline void multiply_wide<bfloat16>(
    float* sums, const unsigned int* a, unsigned long long b) {
  MOXIN_WGMMA("bf16");
}

template <>
__device__ inline void multiply_wide<float16>(
    float* sums, const unsigned int* a, unsigned long long b) {
  MOXIN_WGMMA("f16");
}

#undef MOXIN_WGMMA

}  // namespace moxin
