// Weights of a warp on their way through shared memory, in the order in which it multiplies them,
// over the products and layers of a launch.
//
// Weights do not depend on what is computed, so the copies run ahead of the products by all of a
// warp's shared memory, across the barriers between the steps of a layer: reading goes on while
// thread blocks wait for each other, normalise or attend.

#pragma once

#include "batch_steps.cuh"

namespace moxin {

class WeightStream {
 public:
  // The tiles of each product from number blockIdx.x on, every gridDim.x-th one.
  __device__ explicit WeightStream(const Layer<T>* layers) {
    int thread = threadIdx.x;
    at_ = thread / LANES * SLOTS * SLOT_BYTES;
    place() = Place{layers, 0, 0, static_cast<int>(blockIdx.x)};
    source_ = select(false);
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) copy();
  }

  // Adds the products of the next step with this lane's inputs to two parts of the
  // sums.
  __device__ void multiply(const StepInputs& x, float (*sums)[4]) {
    wait_copies<SLOTS - 1>();
    __syncwarp();
    if constexpr (INTEGERS) {
      multiply_integers(x, sums);
    } else {
      multiply_weights(x, sums);
    }
    __syncwarp();
    copy();
  }

 private:
  __device__ void multiply_weights(const StepInputs& x, float (*sums)[4]) const {
    int lane = threadIdx.x % LANES;
    const unsigned char* slot = shared + at_;
    const T* scales = reinterpret_cast<const T*>(slot + COPIES * COPY_BYTES) + lane / 4 * GROUPS;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const uint4* from = reinterpret_cast<const uint4*>(slot + c * COPY_BYTES) + lane;
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
        const uint4& values = x.vectors[c * PLANES + plane];
        const unsigned int b[4] = {values.x, values.y, values.z, values.w};
        multiply_add<T>(sums[0], first, b);
        multiply_add<T>(sums[1], second, b + 2);
      }
    }
  }

  __device__ void multiply_integers(const StepInputs& x, float (*sums)[4]) const {
    int lane = threadIdx.x % LANES;
    const unsigned char* slot = shared + at_;
    // Scales of both groups; of upper and lower rows, then their biases.
    auto scales = reinterpret_cast<const unsigned int*>(slot + COPIES * COPY_BYTES) + lane / 4;
    unsigned int factors[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) factors[i] = scales[i * (TILE / 2)];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      // See copy() for the place.
      int first = c ^ (lane / 8 % 2);
      auto from = reinterpret_cast<const uint2*>(slot) + lane / 4 * 8 + first * 4 + lane % 4;
      uint2 upper = from[0], lower = from[LANES * 2];
      float parts[4], scale[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scale[i] = to_float(T{static_cast<unsigned short>(factors[i] >> (16 * c))});
        parts[i] = -RAISED_NIBBLES * x.totals[c][i % 2];
      }
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
        unsigned int up[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          up[i] = raised_nibbles(plane ? upper.y : upper.x, i);
          low[i] = raised_nibbles(plane ? lower.y : lower.x, i);
        }
        const unsigned int first[4] = {up[0], low[0], up[1], low[1]};
        const unsigned int second[4] = {up[2], low[2], up[3], low[3]};
        const uint4& values = x.vectors[c * PLANES + plane];
        const unsigned int b[4] = {values.x, values.y, values.z, values.w};
        multiply_add<T>(parts, first, b);
        multiply_add<T>(parts, second, b + 2);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[0][i] += scale[i / 2] * parts[i] + scale[2 + i / 2] * x.totals[c][i % 2];
      }
    }
  }

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
    int layer, product, tile;
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
        long long values = static_cast<long long>(gridDim.x) * TILE * width_of(DOWN);
        skip = values * BITS / 8;
        if constexpr (BITS < 16) skip_scales = values / Weights::GROUP * sizeof(T);
      }
#pragma unroll
      for (int c = 0; c < COPIES; ++c) {
        // Lanes read integers of one group in two units of a row. Every other pair of rows swaps
        // these with the other two units, so that a warp reads from all banks.
        int unit = INTEGERS ? lane ^ (lane / 8 % 2 * 2) : lane;
        copy_once(to + c * COPY_BYTES + unit * 16, source_.upper + skip + c * 64);
        copy_once(to + c * COPY_BYTES + (unit + LANES) * 16, source_.lower + skip + c * 64);
      }
      if constexpr (BITS < 16) {
        copy_few<GROUPS * 2>(
            to + COPIES * COPY_BYTES + lane * GROUPS * 2, source_.scales + skip_scales);
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
    if (is_done) at.tile += tiles_together(at.product) * gridDim.x;
    int warp = threadIdx.x / LANES;
#pragma unroll 1
    for (; at.layer < config::LAYERS; ++at.layer, at.product = 0) {
#pragma unroll 1
      for (; at.product < PRODUCTS; ++at.product, at.tile = blockIdx.x) {
        int width = width_of(at.product), tiles = tiles_of(at.product);
        int steps = steps_of(width, warp);
        if (at.tile >= tiles || steps <= 0) continue;
        Source found = find_rows(at, width);
        found.steps = steps;
        found.has_second = tiles_together(at.product) == 2 && at.tile + static_cast<int>(gridDim.x) < tiles;
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
