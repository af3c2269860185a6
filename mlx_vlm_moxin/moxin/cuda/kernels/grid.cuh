// Kernels of several steps: a barrier over all thread blocks of the grid between two steps.
//
// The barrier only works if all thread blocks are resident at the same time. The host checks that
// before the first launch (device.py, resident_blocks) and launches no more.

#pragma once

#include "dtypes.cuh"

namespace moxin {

// The thread block's dynamic shared memory.
extern __shared__ __align__(128) unsigned char shared[];

// threadIdx.x through volatile asm, so that the compiler recomputes what depends on it in each
// step instead of holding registers.
__device__ inline int thread_of_step() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Index of this warp in the grid. Consecutive warps are on different multiprocessors, so that a
// last round of work with fewer items than warps still occupies all of them.
__device__ inline int grid_warp(int thread) { return thread / LANES * gridDim.x + blockIdx.x; }

// Synchronises the threads team * THREADS ... team * THREADS + THREADS - 1 of a thread block.
template <int THREADS>
__device__ inline void sync_team(int team) {
  asm volatile("bar.sync %0, %1;" : : "r"(1 + team), "n"(THREADS) : "memory");
}

// Whether the thread blocks have arrived, in shared memory.
__device__ inline volatile int& all_have_arrived() {
  __shared__ int flag;
  return flag;
}

// Arriving and waiting are separate, so that loads that depend on no other block can be issued in
// between.
struct GridBarrier {
  unsigned int* arrivals;  // 0 before the first launch that uses it
  unsigned int before;
  bool is_waiting;

  // Publishes what this thread block has written.
  __device__ void arrive() {
    if (threadIdx.x == 0) all_have_arrived() = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      // The additions of all blocks sum to 2^31: the highest bit flips when the last one arrives.
      before = atomicAdd(arrivals, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1);
    }
    is_waiting = true;
  }

  // Waits until all blocks have arrived. A no-op unless this block has arrived since its last
  // wait, so loops may call it before every item.
  __device__ void wait() {
    if (!is_waiting) return;
    is_waiting = false;
    if (threadIdx.x == 0) {
      while (!poll()) {}
    }
    __syncthreads();
  }

  // The same; meanwhile all warps call meanwhile() again and again.
  template <typename Meanwhile>
  __device__ void wait(Meanwhile meanwhile) {
    if (!is_waiting) return;
    is_waiting = false;
    while (!__any_sync(ALL_LANES, all_have_arrived())) {
      if (threadIdx.x == 0 && poll()) all_have_arrived() = 1;
      meanwhile();
      __syncwarp();
    }
    __syncthreads();
  }

 private:
  __device__ bool poll() const {
    unsigned int now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrivals) : "memory");
    return (now ^ before) & 0x80000000u;
  }
};

}  // namespace moxin
