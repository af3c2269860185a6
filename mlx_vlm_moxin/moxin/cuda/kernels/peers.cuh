// Sums over GPUs: memory of each process that the kernels of all of them write into, through NVLink.
//
// A process's memory begins with a counter of arrived thread blocks, to which the blocks of all
// processes add. Next are two numbers that its own kernels keep from launch to launch. The rest is
// two halves, each with room for one part from every process: while one half is read, the parts of
// the next sum are written into the other. All processes launch the same kernels in the same order,
// and never two at the same time, as MLX would for kernels of one evaluation of which none needs the
// other's result: in a pass each sum depends on the one before.
//
// PATIENCE in namespace config: seconds after which a launch fails. Without it, the others would
// wait forever for a process that has ended.

#pragma once

#include "grid.cuh"

namespace moxin {

constexpr int PEER_STATE = 128;   // bytes before the numbers that a process keeps
constexpr int PEER_PARTS = 4096;  // bytes before the first half

template <int RANKS>
struct Peers {
  int rank, part_bytes;
  long long half_bytes;
  unsigned int target, next;  // arrivals that are waited for; the half for the next sum
  bool is_waiting = false;

  // addresses: lower and upper word of each process's address.
  __device__ Peers(const unsigned int* addresses, int rank, int half_bytes, int part_bytes)
      : rank(rank), part_bytes(part_bytes), half_bytes(half_bytes) {
    if (threadIdx.x < RANKS) {
      unsigned long long upper = addresses[2 * threadIdx.x + 1];
      upper = upper << 32 | addresses[2 * threadIdx.x];
      table()[threadIdx.x] = reinterpret_cast<unsigned char*>(upper);
    }
    __syncthreads();
    auto kept = reinterpret_cast<const unsigned int*>(own() + PEER_STATE);
    target = kept[0];
    next = kept[1];
  }

  // Memory of process i. In shared memory, since a kernel has no registers left for it.
  __device__ unsigned char* memory(int i) const { return table()[i]; }
  __device__ unsigned char* own() const { return memory(rank); }

  // Address of this process's part of the next sum in the memory of process `to`.
  __device__ unsigned char* outbox(int to) const {
    return memory(to) + PEER_PARTS + next * half_bytes + static_cast<long long>(rank) * part_bytes;
  }

  // The parts of the last sum, `part_bytes` apart.
  __device__ const unsigned char* inbox() const {
    return own() + PEER_PARTS + (1 - next) * half_bytes;
  }

  // Publishes what this thread block has sent; its sum is now the last one.
  __device__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence_system();
#pragma unroll
      for (int i = 0; i < RANKS; ++i) {
        asm volatile("red.relaxed.sys.global.add.u32 [%0], 1;" : : "l"(memory(i)) : "memory");
      }
    }
    target += RANKS * gridDim.x;
    next = 1 - next;
    is_waiting = true;
  }

  // Waits until all thread blocks of all processes have arrived; a no-op as GridBarrier's.
  __device__ void wait() {
    if (!is_waiting) return;
    is_waiting = false;
    if (threadIdx.x == 0) {
      unsigned long long start = nanoseconds();
      while (static_cast<int>(arrived() - target) < 0) {
        if (nanoseconds() - start > config::PATIENCE * 1000000000ull) asm volatile("trap;");
      }
    }
    __syncthreads();
  }

  // Keeps the numbers for the next launch; after the last wait.
  __device__ void close() {
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    auto kept = reinterpret_cast<unsigned int*>(own() + PEER_STATE);
    kept[0] = target;
    kept[1] = next;
  }

  __device__ unsigned int arrived() const {
    unsigned int count;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(count) : "l"(own()) : "memory");
    return count;
  }

  __device__ static unsigned char** table() {
    __shared__ unsigned char* table[RANKS];
    return table;
  }

  __device__ static unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
  }
};

}  // namespace moxin
