// Weights of a warp on their way through shared memory, in the order in which it multiplies them,
// over the products and layers of a launch.
//
// Weights do not depend on what is computed, so the copies run ahead of the products by all of a
// warp's shared memory, across the barriers between the steps of a layer: reading goes on while
// thread blocks wait for each other, normalise or attend.

#pragma once

#include "batch_multiply.cuh"

namespace moxin {

class WeightStream {
 public:
  // The tiles of each product from number blockIdx.x on, every gridDim.x-th one.
  __device__ explicit WeightStream(const Layer<T>* layers) {
    int thread = threadIdx.x;
    at_ = thread / LANES * SLOTS * SLOT_BYTES;
    last_ = at_ + (SLOTS - 1) * SLOT_BYTES;
    place() = Place{layers, 0, 0, static_cast<int>(blockIdx.x)};
    source_ = select(false);
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) copy();
  }

  // Waits for the next COUNT slots.
  template <int COUNT>
  __device__ void wait() {
    wait_copies<SLOTS - COUNT>();
    __syncwarp();
  }

  // Adds the products of a step of slot 0 or 1 with this lane's inputs to two parts of the sums.
  __device__ void multiply(int slot, int step, const StepInputs& x, float (*sums)[4]) const {
    const unsigned char* from = shared + (slot ? after(at_) : at_);
    int row = threadIdx.x % LANES / 4;
    const unsigned char* scales = from + TOGETHER * STEP_BYTES + row * 4 * SCALE_BYTES;
    from += step * STEP_BYTES;
    if constexpr (INTEGERS) {
      multiply_integers(from, scales, step, x, sums);
    } else {
      multiply_weights(from, scales, step, x, sums);
    }
  }

  // After the products with the next `slots` slots: copies further weights into them.
  __device__ void refill(int slots) {
    __syncwarp();
    copy();
    if (slots == 2) copy();
  }

 private:
  __device__ int after(int at) const {
    return at + (at == last_ ? (1 - SLOTS) * SLOT_BYTES : SLOT_BYTES);
  }

  // Where a warp is: what is needed between tiles only, and would cost registers.
  struct Place {
    const Layer<T>* layers;
    int layer, product, tile;
  };

  // What a lane copies next: its weights and scales, the slots that are left of these tiles, and the
  // bytes of weights to the next slot and to the one after it, which take turns.
  struct Source {
    const char *upper, *lower, *scales;
    int slots, stride, strides;
    int short_ones, back;  // so many last slots have one step of two, which is `back` bytes earlier
    bool has_aligned_scales;

    // Sets all but the pointers, for as many tiles as possible; `at` becomes the last of them.
    __device__ void plan(const Rounds& rounds, int steps, Place& at, int width, int tiles) {
      constexpr int NEXT = WARPS * TOGETHER * STEP * BITS / 8;
      int warp = threadIdx.x / LANES, grid = gridDim.x;
      int rows = grid * (at.product == GATE_UP ? TILE / 2 : TILE);
      int to_next_tile = rows * (width * BITS / 8), in_tile = (steps + TOGETHER - 1) / TOGETHER;
      bool is_pair = tiles_together(at.product) == 2 && at.tile + grid < tiles;
      slots = is_pair ? 2 * in_tile : in_tile;
      short_ones = steps % TOGETHER == 0 ? 0 : is_pair ? 2 : 1;
      back = rounds.last < TOGETHER ? warp * STEP * BITS / 8 : 0;
      has_aligned_scales = width % (TOGETHER * STEP) == 0;
      stride = is_pair ? to_next_tile : NEXT;
      strides = is_pair ? NEXT : 2 * NEXT;
      // Finding a tile takes 300 instructions, so all tiles of a matrix are one source if their slots
      // have two strides.
      bool is_matrix = at.product == OUTPUT || at.product == GATE_UP;
      if (is_matrix && in_tile <= 2 && short_ones == 0) {
        int further = (tiles - at.tile - 1) / grid;
        at.tile += further * grid;
        slots += further * in_tile;
        if (in_tile == 1) stride = to_next_tile;
        strides = in_tile == 1 ? 2 * to_next_tile : to_next_tile;
      }
      find_short_ones();
    }

    __device__ void move(int bytes) {
      upper += bytes;
      lower += bytes;
      if constexpr (BITS < 16) scales += bytes >> SCALES_SHIFT;
    }

    __device__ void find_short_ones() {
      if (TOGETHER > 1 && slots == short_ones) move(-back);
    }
  };

  __device__ static Place& place() {
    __shared__ Place places[WARPS];
    return places[threadIdx.x / LANES];
  }

  // Copies the next weights, if there are any, into the slot that was multiplied.
  __device__ void copy() {
    if (source_.slots > 0) {
      int lane = threadIdx.x % LANES;
      unsigned int to = static_cast<unsigned int>(__cvta_generic_to_shared(shared)) + at_;
      bool is_short = TOGETHER > 1 && source_.slots <= source_.short_ones;
#pragma unroll
      for (int c = 0; c < TOGETHER * COPIES; ++c) {
        // Lanes read integers of one group in two units of a row. Every other pair of rows swaps
        // these with the other two units, so that a warp reads from all banks.
        int unit = INTEGERS && BITS == 4 ? lane ^ (lane / 8 % 2 * 2) : lane;
        if (c >= COPIES && is_short) break;
        copy_once(to + c * COPY_BYTES + unit * 16, source_.upper + c * 64);
        copy_once(to + c * COPY_BYTES + (unit + LANES) * 16, source_.lower + c * 64);
      }
      if constexpr (BITS < 16) {
        unsigned int to_scales = to + TOGETHER * STEP_BYTES;
        to_scales += (lane % 8 * 4 + lane / 8) * SCALE_BYTES;
        if (TOGETHER == 1 || (source_.has_aligned_scales && !is_short)) {
          copy_few<SCALE_BYTES>(to_scales, source_.scales);
        } else {
          copy_few<GROUPS * 2>(to_scales, source_.scales);
          if (!is_short) copy_few<GROUPS * 2>(to_scales + GROUPS * 2, source_.scales + GROUPS * 2);
        }
      }
      advance();
    }
    at_ = after(at_);
    commit_copies();
  }

  __device__ void advance() {
    if (--source_.slots) {
      source_.move(source_.stride);
      source_.stride = source_.strides - source_.stride;
      source_.find_short_ones();
      return;
    }
    source_ = select(true);
  }

  // Goes to the next tile of which this warp does a step; without is_done, this may be the current
  // one. Not inlined, since it is called in many places. All lanes write the same to the warp's place.
  __device__ __noinline__ static Source select(bool is_done) {
    Place at = place();
    if (is_done) at.tile += tiles_together(at.product) * gridDim.x;
    int warp = threadIdx.x / LANES;
#pragma unroll 1
    for (; at.layer < config::LAYERS; ++at.layer, at.product = 0) {
#pragma unroll 1
      for (; at.product < PRODUCTS; ++at.product, at.tile = blockIdx.x) {
        int width = width_of(at.product), tiles = tiles_of(at.product);
        Rounds rounds(width);
        int steps = rounds.count(warp);
        if (at.tile >= tiles || steps <= 0) continue;
        Source found = find_rows(at, width);
        found.plan(rounds, steps, at, width, tiles);
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
    int first_column = warp * TOGETHER * STEP;
    auto weights = [&](const Matrix<T>* of, int first) {
      long long value = static_cast<long long>(first + lane / 4) * width + first_column;
      return static_cast<const char*>(of->weight) + value * BITS / 8 + lane % 4 * 16;
    };
    Source found{weights(matrix, row), weights(other, other_row)};
    if constexpr (BITS < 16) {
      // Lane i copies the scales of row i % 16 of the tile, or its biases.
      bool is_upper = lane % TILE < TILE / 2;
      const Matrix<T>* of = is_upper ? matrix : other;
      long long value = static_cast<long long>((is_upper ? row : other_row) + lane % (TILE / 2));
      value = value * width + first_column;
      found.scales = reinterpret_cast<const char*>(
          (lane < TILE ? of->scales : of->biases) + value / Weights::GROUP);
    }
    return found;
  }

  Source source_;
  int at_, last_;  // slots in shared memory: the one that is multiplied next, the last of the ring
};

}  // namespace moxin
