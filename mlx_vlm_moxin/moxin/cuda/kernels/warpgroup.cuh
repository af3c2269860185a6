// Products of a warpgroup (128 threads) on Hopper GPUs, sm_90a: the tensor cores read shared memory while
// the threads go on.

#pragma once

#include "dtypes.cuh"

namespace moxin {

constexpr int WARPGROUP_THREADS = 128;
// Rows of one product.
constexpr int WARPGROUP_ROWS = 64;

// Descriptor of a tile in shared memory whose rows have 128 bytes, aligned to 1,024 bytes, in which the
// index of every 16 bytes of a row is exclusive-ored with row % 8. The next 16 values of all rows
// have a descriptor that is NEXT_VALUES higher.
__device__ inline unsigned long long describe_tile(unsigned int tile) {
  constexpr unsigned long long SWIZZLE_128_BYTES = 1ull << 62, EIGHT_ROWS = 1024 >> 4;
  return SWIZZLE_128_BYTES | EIGHT_ROWS << 32 | 1ull << 16 | tile >> 4;
}

constexpr int NEXT_VALUES = 2;

// Before the first product after sums were written.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

// Ends a group of products.
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

// Waits until all but the last PENDING groups are done.
template <int PENDING>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(PENDING) : "memory");
}

}  // namespace moxin
