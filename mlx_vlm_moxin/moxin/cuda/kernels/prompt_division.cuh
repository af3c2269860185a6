// How products of prompts are divided among thread blocks (prompt_division.py), and how blocks add up the
// sums of an item that two of them compute.

#pragma once

#include "grid.cuh"
#include "prompt_weights.cuh"
#include "wgmma.cuh"

namespace moxin {

constexpr int PRODUCT_GROUPS = 2;  // warpgroups of a block that multiply

// A value that the compiler computes again after this, so that what depends on it holds no registers.
__device__ inline int again(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// n / by for numbers below 2^20, several times as fast as the division of integers, of which a block with
// little work would notice the time.
__device__ inline int quotient(int n, int by) {
  return static_cast<int>(__fdividef(n + 0.5f, static_cast<float>(by)));
}

// What a block computes: two tiles of weights, times a tile of x, in columns `begin` to `end` of K.
struct Item {
  int pair, tile, begin, end;
};

// How a product is divided: `pairs` times `tiles` items of `loops` rounds of the loop over K. Of the first
// `shared_items` items all blocks have an equal share of the rounds; of the others a block has whole ones.
// Items with the same weights are consecutive, so that their blocks read them at about the same time.
struct Division {
  int pairs, tiles, loops, shared_items;

  // The first round of a block's share.
  __device__ inline int share(int block) const {
    int rounds = shared_items * loops, blocks = gridDim.x, each = quotient(rounds, blocks);
    return each * block + quotient((rounds - each * blocks) * block, blocks);
  }

  // Items of which this block has a share.
  __device__ inline int shared_turns() const {
    if (shared_items == 0) return 0;
    return quotient(share(blockIdx.x + 1) - 1, loops) - quotient(share(blockIdx.x), loops) + 1;
  }

  // Items of this block.
  __device__ inline int turns() const {
    int whole = pairs * tiles - shared_items - static_cast<int>(blockIdx.x), blocks = gridDim.x;
    return shared_turns() + quotient(max(0, whole + blocks - 1), blocks);
  }

  // The item of a turn. A share is computed from its end on, so that what a block needs from the block
  // before (Handover) is there in time.
  __device__ inline Item find(int turn) const {
    int whole = turn - shared_turns(), begin = 0, end = loops;
    int index = shared_items + blockIdx.x + whole * gridDim.x;
    if (whole < 0) {
      int first = share(blockIdx.x), last = share(blockIdx.x + 1);
      index = quotient(last - 1, loops) - turn;
      begin = max(0, first - index * loops);
      end = min(loops, last - index * loops);
    }
    int pair = quotient(index, tiles);
    return {pair, index - pair * tiles, begin * LOOP_K, end * LOOP_K};
  }

  // Blocks before this one that have a part of an item.
  __device__ inline int blocks_before(const Item& item) const {
    int first = (item.pair * tiles + item.tile) * loops, before = 0;
    if (shared_items == 0) return 0;
    while (share(blockIdx.x - before) > first) ++before;
    return before;
  }
};

// Waits until another thread block has set a flag to 1.
__device__ inline void wait_flag(const unsigned int* flag) {
  unsigned int now = 0;
  for (long long start = clock64(); !now;) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
    if (clock64() - start > MAX_WAIT) asm volatile("trap;");
  }
}

// What another thread block has written.
__device__ inline float4 load_written(const float4* address) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

// Where warpgroups leave their sums for the block after theirs: [blocks, PRODUCT_GROUPS, TOKENS / 8,
// WARPGROUP_THREADS] times four, and a flag of each warpgroup.
struct Handover {
  float4* sums;
  unsigned int* flags;  // 0 before and after a launch

  template <int TOKENS>
  __device__ inline float4* at(int block) const {
    int group = block * PRODUCT_GROUPS + threadIdx.x / WARPGROUP_THREADS;
    return sums + group * (TOKENS / 8 * WARPGROUP_THREADS) + threadIdx.x % WARPGROUP_THREADS;
  }

  __device__ inline unsigned int* flag(int block) const {
    return flags + block * PRODUCT_GROUPS + threadIdx.x / WARPGROUP_THREADS;
  }

  template <int TOKENS>
  __device__ inline void give(const float (&values)[2][TOKENS / 4]) const {
    float4* to = at<TOKENS>(blockIdx.x);
#pragma unroll
    for (int i = 0; i < TOKENS / 8; ++i) {
      const float* four = values[i / (TOKENS / 16)] + i % (TOKENS / 16) * 4;
      to[i * WARPGROUP_THREADS] = float4{four[0], four[1], four[2], four[3]};
    }
    __threadfence();
    sync_team<WARPGROUP_THREADS>(threadIdx.x / WARPGROUP_THREADS);
    if (threadIdx.x % WARPGROUP_THREADS == 0) atomicAdd(flag(blockIdx.x), 1u);
  }

  // Adds what the block before has given. GPUs start blocks in their order, and that one waits for nothing
  // before it gives, so this ends even if not all blocks fit on the GPU.
  template <int TOKENS>
  __device__ inline void add(float (&values)[2][TOKENS / 4]) const {
    int before = blockIdx.x - 1;
    if (threadIdx.x % WARPGROUP_THREADS == 0) {
      wait_flag(flag(before));
      *flag(before) = 0;
    }
    sync_team<WARPGROUP_THREADS>(threadIdx.x / WARPGROUP_THREADS);
    const float4* from = at<TOKENS>(before);
#pragma unroll
    for (int i = 0; i < TOKENS / 8; ++i) {
      float* four = values[i / (TOKENS / 16)] + i % (TOKENS / 16) * 4;
      float4 given = load_written(from + i * WARPGROUP_THREADS);
      four[0] += given.x;
      four[1] += given.y;
      four[2] += given.z;
      four[3] += given.w;
    }
  }
};

}  // namespace moxin
