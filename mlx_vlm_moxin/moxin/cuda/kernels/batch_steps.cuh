// How a thread block divides the weights of a layer into tiles and steps.
//
// A tile is 16 rows of weights, upper and lower eight. Its columns are divided into steps of STEP
// values. Warps do them in turns, the same ones of all tiles, so that a warp keeps its part of the
// input in registers, and all warps together read consecutive columns. In a step, lane 4 g + j copies
// and multiplies rows g and g + 8: units of 16 bytes at columns j PACK, (j + 4) PACK, ...
// (narrow_matmul.cuh says why).

#pragma once

#include "decoder_layer.cuh"
#include "grid.cuh"
#include "tensor_cores.cuh"

namespace moxin {

using config::T;
using Weights = config::QKV;  // the format of all matrices

constexpr int WARPS = config::THREADS / LANES;
constexpr int STEP = config::STEP;
constexpr int SLOTS = config::SLOTS;  // of a warp, for weights in shared memory
constexpr int TOGETHER = config::STEPS_OF_SLOT;  // consecutive ones
constexpr int TILE = 16;
constexpr int SUMMED = config::TILES_SUMMED;  // tiles whose parts are added up together
constexpr int ROWS = 8;  // of the input
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
constexpr int KEYS_WIDTH = config::KV_HEADS * config::HEAD_DIM;
constexpr int PROJECTED = ATTENDED + 2 * KEYS_WIDTH;

constexpr int BITS = Weights::BITS;
// Whether the tensor cores multiply integers (batch_multiply.cuh).
constexpr bool INTEGERS = config::INTEGERS;
constexpr int PACK = 128 / BITS;             // weights of 16 bytes
constexpr int UNIT = INTEGERS ? 16 : PACK;   // consecutive weights of a row that a lane multiplies
constexpr int PLANES = UNIT / 8;             // vectors of eight inputs for them
constexpr int CHUNKS = STEP / (4 * UNIT);    // units of a lane's row in a step
constexpr int VECTORS = STEP / 32;           // vectors of eight inputs of a lane in a step
constexpr int COPIES = STEP / (4 * PACK);    // of 16 bytes by a lane, of its two rows each
constexpr int COPY_BYTES = TILE * 64;
constexpr int GROUPS = BITS < 16 ? STEP / Weights::GROUP : 0;  // scales of a row in a step
// Bytes of a row's weights are 1 << SCALES_SHIFT times those of its scales.
constexpr int SCALES_SHIFT = (Weights::GROUP == 64) + (BITS == 8) + 3;
constexpr int STEP_BYTES = COPIES * COPY_BYTES;  // of weights
constexpr int SCALE_BYTES = TOGETHER * GROUPS * 2;  // of a row in a slot
constexpr int SLOT_BYTES = TOGETHER * STEP_BYTES + 2 * TILE * SCALE_BYTES;
static_assert(STEP % (4 * PACK) == 0, "a step is whole copies");
static_assert(GROUPS % 2 == 0, "scales are copied in at least four bytes");

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

// How the warps divide the steps of a row: in rounds, in each of which a warp does TOGETHER
// consecutive ones. The last round may have fewer for each warp, or for some.
struct Rounds {
  int full, last;  // full rounds; steps of a warp in the last one, at most
  int left;        // steps of all warps in the last one

  __host__ __device__ constexpr explicit Rounds(int width)
      : full(width / STEP / (WARPS * TOGETHER)),
        last((width / STEP % (WARPS * TOGETHER) + WARPS - 1) / WARPS),
        left(width / STEP % (WARPS * TOGETHER)) {}

  // Number of the step that a warp does after `done` others.
  __host__ __device__ constexpr int step_of(int warp, int done) const {
    return done < full * TOGETHER
        ? (done / TOGETHER * WARPS + warp) * TOGETHER + done % TOGETHER
        : full * WARPS * TOGETHER + warp * last + done - full * TOGETHER;
  }

  // Steps of a warp.
  __host__ __device__ constexpr int count(int warp) const {
    int more = left - warp * last;
    return full * TOGETHER + (more < 0 ? 0 : more < last ? more : last);
  }
};

}  // namespace moxin
