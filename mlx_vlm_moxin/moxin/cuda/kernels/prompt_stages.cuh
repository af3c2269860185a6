// The stages in shared memory through which Hopper's products of prompts receive x and plain weights.

#pragma once

#include "wgmma.cuh"

namespace moxin {

constexpr int STAGE_K = 64;  // 128 bytes of a row

// The stages, of which a warpgroup or a copying thread uses one after the other. Each has TOKENS rows of
// x, and then ROWS rows of weights; both are swizzled, as describe_tile describes it.
template <int TOKENS, int ROWS, int STAGES>
struct Stages {
  static constexpr int X_BYTES = TOKENS * STAGE_K * 2, BYTES = X_BYTES + ROWS * STAGE_K * 2;
  unsigned int memory;
  int index = 0;
  unsigned int parity = 0;

  __device__ inline unsigned int data() const { return memory + index * BYTES; }
  __device__ inline unsigned int filled() const { return memory + STAGES * BYTES + 8 * index; }
  __device__ inline unsigned int emptied() const { return filled() + 8 * STAGES; }
  __device__ inline void advance() {
    if (++index < STAGES) return;
    index = 0;
    parity ^= 1;
  }
  // The stage before is not read any more by this warp.
  __device__ inline void release_before() const {
    int before = index ? index - 1 : STAGES - 1;
    if (threadIdx.x % LANES == 0) arrive(memory + STAGES * (BYTES + 8) + 8 * before);
  }
};

}  // namespace moxin
