// A kernel that takes several steps: all its blocks wait for each other between two of them.
//
// All blocks must be resident at once, so a launch has no more of them than there is room for.

#pragma once

#include "types.cu"

namespace moxin {

// threadIdx.x, for the compiler a new number each time: what follows from it is not kept in
// registers from one step to the next.
__device__ inline int thread_of_step() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Which warp of the grid this is. Neighbours are on different multiprocessors, so that a last
// round of work, which not all warps take part in, still occupies all of these.
__device__ inline int grid_warp(int thread) { return thread / LANES * gridDim.x + blockIdx.x; }

// Threads number team * THREADS and following of a block wait for each other.
template <int THREADS>
__device__ inline void sync_team(int team) {
  asm volatile("bar.sync %0, %1;" : : "r"(1 + team), "n"(THREADS) : "memory");
}

// Arrival and waiting are apart, so that loads that depend on nobody can be started in between.
struct GridBarrier {
  unsigned int* arrivals;  // 0 at first, then what a launch left
  unsigned int before;
  bool is_waiting;

  // What the block wrote until now is seen by those that wait.
  __device__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      // Together 2^31: the highest bit turns when the last block arrives.
      before = atomicAdd(arrivals, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1);
    }
    is_waiting = true;
  }

  // Once for each arrival: work in rounds may ask in front of each of them.
  __device__ void wait() {
    if (!is_waiting) return;
    is_waiting = false;
    if (threadIdx.x == 0) {
      unsigned int now;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(now)
                     : "l"(arrivals)
                     : "memory");
      } while (!((now ^ before) & 0x80000000u));
    }
    __syncthreads();
  }
};

}  // namespace moxin
