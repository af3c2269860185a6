// How a thread block divides the weights of a layer into tiles and steps, and a lane's inputs of a step.
//
// A tile is 16 rows of weights, upper and lower eight. Its columns are divided into steps of STEP
// values; step s of all warps is done by warp s % WARPS, so that a warp keeps its part of the input
// in registers for all tiles. In a step, lane 4 g + j copies and multiplies rows g and g + 8: units of
// 16 bytes at columns j PACK, (j + 4) PACK, ... (narrow_matmul.cuh says why).

#pragma once

#include "decoder_layer.cuh"
#include "grid.cuh"
#include "tensor_cores.cuh"

namespace moxin {

using config::T;
using Weights = config::QKV;  // the format of all matrices

constexpr int WARPS = config::THREADS / LANES;
constexpr int SLOTS = config::SLOTS;  // steps in flight
constexpr int STEP = config::STEP;
constexpr int TILE = 16;
constexpr int ROWS = 8;  // of the input
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
constexpr int KEYS_WIDTH = config::KV_HEADS * config::HEAD_DIM;
constexpr int PROJECTED = ATTENDED + 2 * KEYS_WIDTH;

constexpr int BITS = Weights::BITS;
// The tensor cores multiply the integers of 4 bits, and scales are applied to the sums of a group:
// half as many instructions for a weight.
constexpr bool INTEGERS = config::INTEGERS;
constexpr int PACK = 128 / BITS;             // weights of 16 bytes
constexpr int UNIT = INTEGERS ? 16 : PACK;   // consecutive weights of a row that a lane multiplies
constexpr int PLANES = UNIT / 8;             // vectors of eight inputs for them
constexpr int CHUNKS = STEP / (4 * UNIT);    // units of a lane's row in a step
constexpr int VECTORS = STEP / 32;           // vectors of eight inputs of a lane in a step
constexpr int COPIES = STEP / (4 * PACK);    // of 16 bytes by a lane, of its two rows each
constexpr int COPY_BYTES = TILE * 64;
constexpr int GROUPS = BITS < 16 ? STEP / Weights::GROUP : 0;  // scales of a row in a step
constexpr int SLOT_BYTES = COPIES * COPY_BYTES + 2 * TILE * GROUPS * 2;
static_assert(STEP % (4 * PACK) == 0, "a step is whole copies");
static_assert(GROUPS % 2 == 0, "scales are copied in at least four bytes");

// A lane's inputs of a step: of row lane / 4.
struct StepInputs {
  uint4 vectors[VECTORS];
  // If INTEGERS, sums of rows 2 j and 2 j + 1, j = lane % 4, over the columns of each group.
  float totals[INTEGERS ? GROUPS : 1][2];

  // To be called when the vectors are complete.
  __device__ void finish() {
    if constexpr (INTEGERS) {
      constexpr unsigned int ONE = 0x3f803f80u;  // twice, in bfloat16
      const unsigned int ones[4] = {ONE, ONE, ONE, ONE};
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        float sums[4] = {};
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
          // In the order of raised_nibbles.
          uint4& v = vectors[c * PLANES + plane];
          v = uint4{__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                    __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
          const unsigned int b[4] = {v.x, v.y, v.z, v.w};
          multiply_add<T>(sums, ones, b);
          multiply_add<T>(sums, ones, b + 2);
        }
        totals[c][0] = sums[0];
        totals[c][1] = sums[1];
      }
    }
  }
};

// Products of a layer, in their order.
enum Product { QKV, OUTPUT, GATE_UP, DOWN, PRODUCTS };

__host__ __device__ constexpr int width_of(int product) {
  return product == OUTPUT ? ATTENDED : product == DOWN ? config::INTERMEDIATE : config::HIDDEN;
}

__host__ __device__ constexpr int tiles_of(int product) {
  return product == QKV     ? PROJECTED / TILE
      : product == GATE_UP ? 2 * config::INTERMEDIATE / TILE
                           : config::HIDDEN / TILE;
}

// Tiles that are multiplied together, because the input is not kept in registers.
__host__ __device__ constexpr int tiles_together(int product) { return product == DOWN ? 2 : 1; }

// Steps of a row that this warp does.
__device__ inline int steps_of(int width, int warp) {
  return (width / STEP - warp + WARPS - 1) / WARPS;
}

}  // namespace moxin
