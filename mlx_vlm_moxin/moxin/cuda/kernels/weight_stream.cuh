// Weights of a warp on their way through shared memory, in the order in which it multiplies them,
// over the products and layers of a launch.
//
// Weights do not depend on what is computed, so the copies run ahead of the products by all of a
// warp's shared memory, across the barriers between the steps of a layer: reading goes on while
// thread blocks wait for each other, normalise or attend.
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
constexpr int ROW_TILES = config::ROW_TILES;  // of eight rows of the input
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
constexpr int KEYS_WIDTH = config::KV_HEADS * config::HEAD_DIM;
constexpr int PROJECTED = ATTENDED + 2 * KEYS_WIDTH;

constexpr int BITS = Weights::BITS;
constexpr int PACK = 128 / BITS;            // weights of 16 bytes
constexpr int PLANES = PACK / 8;            // vectors of eight inputs for them
constexpr int CHUNKS = STEP / (4 * PACK);   // units of a lane's row in a step
constexpr int VECTORS = STEP / 32;          // vectors of eight inputs of a lane in a step
constexpr int CHUNK_BYTES = TILE * 64;
constexpr int GROUPS = BITS < 16 ? STEP / Weights::GROUP : 0;  // scales of a row in a step
constexpr int SLOT_BYTES = CHUNKS * CHUNK_BYTES + 2 * TILE * GROUPS * 2;
static_assert(STEP % (4 * PACK) == 0, "a step is whole units");
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

// Steps of a row that this warp does.
__device__ inline int steps_of(int width, int warp) {
  return (width / STEP - warp + WARPS - 1) / WARPS;
}

class WeightStream {
 public:
  // The tiles of each product from number `first` on, every `stride`-th one.
  __device__ WeightStream(const Layer<T>* layers, int first, int stride) {
    int thread = threadIdx.x;
    at_ = thread / LANES * SLOTS * SLOT_BYTES;
    place() = Place{layers, 0, 0, first, first, stride};
    source_ = select(false);
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) copy();
  }

  // Adds the products of the next step with this lane's inputs to the sums: of two tiles of rows, or
  // two parts of those of one tile.
  __device__ void multiply(const uint4 (*x)[VECTORS], float (*sums)[4]) {
    wait_copies<SLOTS - 1>();
    __syncwarp();
    int lane = threadIdx.x % LANES;
    const unsigned char* slot = shared + at_;
    const T* scales = reinterpret_cast<const T*>(slot + CHUNKS * CHUNK_BYTES) + lane / 4 * GROUPS;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const uint4* from = reinterpret_cast<const uint4*>(slot + c * CHUNK_BYTES) + lane;
      uint4 upper = from[0], lower = from[LANES];
      T upper_scale{}, upper_bias{}, lower_scale{}, lower_bias{};
      if constexpr (BITS < 16) {
        int group = c * 4 * PACK / Weights::GROUP;
        if constexpr (Weights::GROUP < 4 * PACK) group += lane % 4 * PACK / Weights::GROUP;
        upper_scale = scales[group];
        lower_scale = scales[TILE / 2 * GROUPS + group];
        upper_bias = scales[TILE * GROUPS + group];
        lower_bias = scales[TILE * 3 / 2 * GROUPS + group];
      }
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
        unsigned int up[4], low[4];
        next_eight<T, BITS>(upper, upper_scale, upper_bias, up);
        next_eight<T, BITS>(lower, lower_scale, lower_bias, low);
        const unsigned int first[4] = {up[0], low[0], up[1], low[1]};
        const unsigned int second[4] = {up[2], low[2], up[3], low[3]};
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
          const uint4& values = x[tile][c * PLANES + plane];
          const unsigned int b[4] = {values.x, values.y, values.z, values.w};
          multiply_add<T>(sums[tile], first, b);
          multiply_add<T>(sums[ROW_TILES == 1 ? 1 : tile], second, b + 2);
        }
      }
    }
    __syncwarp();
    copy();
  }

 private:
  // What is copied of a tile, by each lane: its next weights and scales, the steps that are left, and
  // whether another tile is multiplied together with it.
  struct Source {
    const char *upper, *lower, *scales;
    int steps;
    bool has_second;
  };

  // Where a warp is: what is needed between tiles only, and would cost registers.
  struct Place {
    const Layer<T>* layers;
    int layer, product, tile, first, stride;
  };

  __device__ static Place& place() {
    __shared__ Place places[WARPS];
    return places[threadIdx.x / LANES];
  }

  // Copies the next step of weights, if there is one, into the slot that was multiplied last.
  __device__ void copy() {
    if (source_.steps > 0) {
      int lane = threadIdx.x % LANES;
      unsigned int to = static_cast<unsigned int>(__cvta_generic_to_shared(shared)) + at_;
      long long skip = 0, skip_scales = 0;
      if (is_second_) {
        long long values = static_cast<long long>(place().stride) * TILE * width_of(DOWN);
        skip = values * BITS / 8;
        if constexpr (BITS < 16) skip_scales = values / Weights::GROUP * sizeof(T);
      }
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        copy_once(to + c * CHUNK_BYTES + lane * 16, source_.upper + skip + c * 64);
        copy_once(to + c * CHUNK_BYTES + (lane + LANES) * 16, source_.lower + skip + c * 64);
      }
      if constexpr (BITS < 16) {
        copy_few<GROUPS * 2>(
            to + CHUNKS * CHUNK_BYTES + lane * GROUPS * 2, source_.scales + skip_scales);
      }
      advance();
    }
    at_ += SLOT_BYTES;
    if (++slot_ == SLOTS) {
      slot_ = 0;
      at_ -= SLOTS * SLOT_BYTES;
    }
    commit_copies();
  }

  __device__ void advance() {
    is_second_ = source_.has_second && !is_second_;
    if (is_second_) return;
    if (--source_.steps) {
      source_.upper += WARPS * STEP * BITS / 8;
      source_.lower += WARPS * STEP * BITS / 8;
      source_.scales += WARPS * GROUPS * sizeof(T);
      return;
    }
    source_ = select(true);
  }

  // Goes to the next tile of which this warp does a step; without is_done, this may be the current
  // one. Not inlined, since it is called in many places. All lanes write the same to the warp's place.
  __device__ __noinline__ static Source select(bool is_done) {
    Place at = place();
    if (is_done) at.tile += tiles_together(at.product) * at.stride;
    int warp = threadIdx.x / LANES;
#pragma unroll 1
    for (; at.layer < config::LAYERS; ++at.layer, at.product = 0) {
#pragma unroll 1
      for (; at.product < PRODUCTS; ++at.product, at.tile = at.first) {
        int width = width_of(at.product), tiles = tiles_of(at.product);
        int steps = steps_of(width, warp);
        if (at.tile >= tiles || steps <= 0) continue;
        Source found = find_rows(at, width);
        found.steps = steps;
        found.has_second = tiles_together(at.product) == 2 && at.tile + at.stride < tiles;
        __syncwarp();
        place() = at;
        return found;
      }
    }
    return {};
  }

  __device__ static Source find_rows(const Place& at, int width) {
    const Layer<T>& layer = at.layers[at.layer];
    int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const Matrix<T>*matrix, *other;
    int row = at.tile * TILE, other_row = 0;
    if (at.product == GATE_UP) {
      matrix = &layer.gate_proj;
      other = &layer.up_proj;
      row = other_row = at.tile * TILE / 2;
    } else {
      matrix = at.product == OUTPUT ? &layer.o_proj
          : at.product == DOWN      ? &layer.down_proj
                                    : &layer.q_proj;
      if (at.product == QKV && row >= ATTENDED) {
        bool is_key = row < ATTENDED + KEYS_WIDTH;
        matrix = is_key ? &layer.k_proj : &layer.v_proj;
        row -= is_key ? ATTENDED : ATTENDED + KEYS_WIDTH;
      }
      other = matrix;
      other_row = row + TILE / 2;
    }
    auto weights = [&](const Matrix<T>* of, int first) {
      long long value = static_cast<long long>(first + lane / 4) * width + warp * STEP;
      return static_cast<const char*>(of->weight) + value * BITS / 8 + lane % 4 * 16;
    };
    Source found{weights(matrix, row), weights(other, other_row)};
    if constexpr (BITS < 16) {
      // Lane i copies the scales of row i % 16 of the tile, or its biases.
      bool is_upper = lane % TILE < TILE / 2;
      const Matrix<T>* of = is_upper ? matrix : other;
      long long value = static_cast<long long>((is_upper ? row : other_row) + lane % (TILE / 2));
      value = value * width + warp * STEP;
      found.scales = reinterpret_cast<const char*>(
          (lane < TILE ? of->scales : of->biases) + value / Weights::GROUP);
    }
    return found;
  }

  Source source_;
  bool is_second_ = false;  // it is the second tile's turn
  int slot_ = 0, at_;       // of the ring, multiplied and copied next; its place in shared memory
};

}  // namespace moxin
