// Products of up to eight rows with weights that arrive in shared memory (weight_stream.cuh). The warps
// of a thread block divide the columns, and their parts of a result are added up in shared memory, for
// SUMMED tiles at a time, because the warps have to wait for each other.

#pragma once

#include "weight_stream.cuh"

namespace moxin {

constexpr int TILE_VALUES = TILE * ROWS;

// Shared memory after the weights: parts of two times SUMMED tiles, or what attention needs.
__device__ inline unsigned char* scratch() { return shared + WARPS * SLOTS * SLOT_BYTES; }

// What a warp has of tile `of` of those that are added up together.
__device__ inline float* parts_of(int finished, int of, int warp) {
  int part = (finished % 2 * SUMMED + of) * WARPS + warp;
  return reinterpret_cast<float*>(scratch()) + part * TILE_VALUES;
}

// Stores this warp's part of tile `of`.
__device__ inline void store_part(int finished, int of, const float (*sums)[4]) {
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  float* part = parts_of(finished, of, warp);
#pragma unroll
  for (int i = 0; i < 4; ++i) part[i * LANES + lane] = sums[0][i] + sums[1][i];
}

// Adds up the parts that the warps have stored, of tile `tile` and the next ones of this thread block,
// and gives them to out(tile, row of the tile, row of x, value, loaded); for gate and up silu(gate) * up
// of rows 0 to 7. A warp adds up one register of the fragments of all warps; which warps do so changes
// from call to call. load(tile, row, row of x) is called before, for what out needs from memory.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void finish_tiles(int& finished, int tile, Load load, Out out) {
  constexpr bool GATED = PRODUCT == GATE_UP;
  constexpr int OF_TILE = GATED ? 2 : 4, ADDERS = SUMMED * OF_TILE;
  static_assert(WARPS % ADDERS == 0, "each adder is a warp");
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  int before = finished++;
  int adder = warp - before % (WARPS / ADDERS) * ADDERS;
  int of = adder / OF_TILE, part = adder % OF_TILE;
  tile += of * gridDim.x;
  bool adds = adder >= 0 && adder < ADDERS && tile < tiles_of(PRODUCT);
  int row = lane / 4 + part / 2 * (TILE / 2), row_of_x = lane % 4 * 2 + part % 2;
  decltype(load(0, 0, 0)) loaded{};
  if (adds) loaded = load(tile, row, row_of_x);
  __syncthreads();
  if (!adds) return;
  float total = 0, up = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const float* from = parts_of(before, of, w) + part * LANES + lane;
    total += from[0];
    if constexpr (GATED) up += from[2 * LANES];
  }
  if constexpr (GATED) total = total / (1 + __expf(-total)) * up;
  out(tile, row, row_of_x, total, loaded);
}

// A product of this thread block's tiles with inputs in registers, one per step.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void multiply_tiles(
    WeightStream& stream, int& finished, const StepInputs* x, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  int steps = Rounds(K).count(thread_of_step() / LANES);
  int of = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles_of(PRODUCT); tile += gridDim.x) {
    float sums[2][4] = {};
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; step += TOGETHER) {
      if (!HAVE_MOST_STEPS<K> && step >= steps) break;
      stream.wait<1>();
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        if (HAVE_MOST_STEPS<K> || step + i < steps) stream.multiply(0, i, x[step + i], sums);
      }
      stream.refill(1);
    }
    store_part(finished, of, sums);
    if (of == SUMMED - 1 || tile + static_cast<int>(gridDim.x) >= tiles_of(PRODUCT)) {
      finish_tiles<PRODUCT>(finished, tile - of * static_cast<int>(gridDim.x), load, out);
    }
    of = (of + 1) % SUMMED;
  }
}

// The same with inputs x [rows, K] that do not fit into registers: read step by step, for two tiles.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void multiply_pairs(
    WeightStream& stream, int& finished, const T* x, int rows, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  static_assert(tiles_together(PRODUCT) == 2, "tiles are in this order");
  int steps = Rounds(K).count(thread_of_step() / LANES);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles_of(PRODUCT); tile += 2 * gridDim.x) {
    int other = tile + gridDim.x;
    float sums[2][2][4] = {};
    StepInputs next;
    load_inputs<K>(Vectors{x}, rows, 0, next);
#pragma unroll 1
    for (int step = 0; step < steps; step += TOGETHER) {
      stream.wait<2>();
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        if (i && step + i >= steps) break;
        StepInputs now = next;
        load_inputs<K>(Vectors{x}, rows, step + i + 1, next);
        now.finish();
        stream.multiply(0, i, now, sums[0]);
        if (other < tiles_of(PRODUCT)) stream.multiply(1, i, now, sums[1]);
      }
      stream.refill(other < tiles_of(PRODUCT) ? 2 : 1);
    }
    store_part(finished, 0, sums[0]);
    if constexpr (SUMMED == 1) finish_tiles<PRODUCT>(finished, tile, load, out);
    store_part(finished, SUMMED - 1, sums[1]);
    finish_tiles<PRODUCT>(finished, SUMMED == 1 ? other : tile, load, out);
  }
}

}  // namespace moxin
