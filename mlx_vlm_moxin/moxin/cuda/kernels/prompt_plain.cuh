// Plain weights as operand A of Hopper's tensor cores: a warpgroup copies them into the stages of x, and
// the others load them from there. Read by each lane from global memory, as packed weights are, they
// would be too many bytes for the L1 cache.

#pragma once

#include "prompt_division.cuh"
#include "prompt_stages.cuh"
#include "tensor_cores.cuh"

namespace moxin {

constexpr int BLOCK_ROWS = PRODUCT_GROUPS * TILE;  // rows of weights in a stage

// The weights of a lane, of a warpgroup's tile.
template <typename Stages>
struct StagedWeights {
  static constexpr bool ARE_STAGED = true;
  Stages stages;  // from which the next ones are loaded

  __device__ inline void use(const Stages& all) { stages = all; }

  // The operands of a step, as LaneWeights::unpack.
  __device__ inline void unpack(int step, int, unsigned int (*operands)[4], bool) {
    int column = step * STEP_K % STAGE_K;
    if (column == 0) wait_barrier(stages.filled(), stages.parity);
    int row = threadIdx.x / LANES * 16 + threadIdx.x % 16, chunk = column / 8 + threadIdx.x % LANES / 16;
    unsigned int from = stages.data() + Stages::X_BYTES + row * (STAGE_K * 2);
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      load_matrices(operands[product], from + ((chunk + 2 * product) ^ row % 8) * 16);
    }
    if (column + STEP_K == STAGE_K) stages.advance();
  }
};

// Nothing, because all weights are read by the copying warpgroup.
template <typename Matrices, typename Stages>
__device__ inline void begin_item(const Matrices&, const Item&, int, StagedWeights<Stages>&) {}

// Copies the stages of an item, by a warpgroup: thread 0 the parts of x, and each thread 16 bytes of every
// sixteenth row of weights.
template <typename Matrices, int TOKENS, int STAGES>
__device__ inline void copy_stages(
    const char* x, const Matrices& from, Stages<TOKENS, BLOCK_ROWS, STAGES>& stages, const Item& item,
    int width) {
  using All = Stages<TOKENS, BLOCK_ROWS, STAGES>;
  constexpr int AT_ONCE = WARPGROUP_THREADS / 8, COPIES = BLOCK_ROWS / AT_ONCE;
  int thread = threadIdx.x % WARPGROUP_THREADS, row = thread / 8;
  unsigned int place = All::X_BYTES + row * (STAGE_K * 2) + (thread % 8 ^ row % 8) * 16;
  const char* weights[COPIES];
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    int index = row + i * AT_ONCE, row_of_matrix;
    auto matrix = from.find(item.pair * PRODUCT_GROUPS + index / TILE, index % TILE, row_of_matrix);
    long long at = static_cast<long long>(row_of_matrix) * width + item.begin;
    weights[i] = static_cast<const char*>(matrix.weight) + at * 2 + thread % 8 * 16;
  }
  x += (static_cast<long long>(item.tile) * (width / STAGE_K) + item.begin / STAGE_K) * All::X_BYTES;
#pragma unroll 1
  for (int k = item.begin; k < item.end; k += STAGE_K) {
    wait_barrier(stages.emptied(), stages.parity ^ 1);
    if (thread == 0) {
      arrive_expecting(stages.filled(), All::X_BYTES);
      copy_bulk(stages.data(), x, All::X_BYTES, stages.filled());
      x += All::X_BYTES;
    }
    unsigned int to = stages.data() + place;
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
      copy_once(to + i * AT_ONCE * STAGE_K * 2, weights[i]);
      weights[i] += STAGE_K * 2;
    }
    arrive_after_copies(stages.filled());
    stages.advance();
  }
}

}  // namespace moxin
