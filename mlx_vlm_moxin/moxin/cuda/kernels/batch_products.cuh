// Products of up to eight rows with weights that arrive in shared memory (weight_stream.cuh): the inputs
// of a thread block, which its warps hold in registers, their RMS norm, and the results.
//
// The operands are swapped: a product of tensor cores has 16 rows of weights and eight rows of x.

#pragma once

#include "weight_stream.cuh"

namespace moxin {

constexpr int TILE_VALUES = TILE * ROWS;

// Shared memory after the weights: parts of the results of two tiles, or what attention needs.
__device__ inline unsigned char* scratch() { return shared + WARPS * SLOTS * SLOT_BYTES; }

// Steps of a warp, at most.
template <int K>
constexpr int MOST_STEPS = (K / STEP + WARPS - 1) / WARPS;

// Column of a lane's vector v in its warp's step `step`.
__device__ inline int column_of(int step, int v) {
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  return (step * WARPS + warp) * STEP + lane % 4 * UNIT + v / PLANES * 4 * UNIT + v % PLANES * 8;
}

// A lane's inputs of step `step` of a warp: of row lane / 4 of x [rows, K], 0 if there is none.
template <int K>
__device__ inline void load_inputs(const T* x, int rows, int step, StepInputs& to) {
  int row = thread_of_step() % LANES / 4;
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    int column = column_of(step, v);
    bool inside = row < rows && column < K;
    to.vectors[v] = inside ? *reinterpret_cast<const uint4*>(x + row * K + column) : uint4{0, 0, 0, 0};
  }
}

// A lane's columns of a norm's weight [K], loaded early.
template <int K>
struct NormWeight {
  uint4 vectors[MOST_STEPS<K>][VECTORS];

  __device__ explicit NormWeight(const T* weight) {
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        int column = min(column_of(step, v), K - 8);
        vectors[step][v] = *reinterpret_cast<const uint4*>(weight + column);
      }
    }
  }
};

// Keeps the compiler from holding what it has computed from v.
__device__ inline void forget(uint4& v) {
  asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

// RMS norm of the rows of inputs that the lanes of a thread block hold.
template <int K>
__device__ inline void normalise(StepInputs* x, const NormWeight<K>& weight) {
  __shared__ float squares[WARPS][ROWS];
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  float sum = 0;
#pragma unroll
  for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float values[8];
      unpack<T>(x[step].vectors[v], values);
#pragma unroll
      for (float value : values) sum += value * value;
    }
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  sum += __shfl_xor_sync(ALL_LANES, sum, 2);
  if (lane % 4 == 0) squares[warp][lane / 4] = sum;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += squares[w][lane / 4];
  float scale = rsqrtf(total / K + config::EPS);
#pragma unroll
  for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float factors[8], values[8];
      unpack<T>(weight.vectors[step][v], factors);
      forget(x[step].vectors[v]);
      unpack<T>(x[step].vectors[v], values);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] *= scale * factors[i];
      x[step].vectors[v] = pack_eight<T>(values);
    }
  }
}

// Adds up the parts of a tile that the warps have, and gives them to out(tile, row of the tile, row of
// x, value, loaded); for GATED tiles silu(gate) * up of rows 0 to 7. A warp adds up one register of
// the fragments of all warps; which warps do so changes from tile to tile. load(tile, row, row of x)
// is called before, for what out needs from memory.
template <bool GATED, typename Load, typename Out>
__device__ inline void finish_tile(
    int& finished, int tile, const float (*sums)[4], Load load, Out out) {
  constexpr int ADDERS = 4;
  static_assert(WARPS % ADDERS == 0, "each adder is a warp");
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  auto parts = reinterpret_cast<float(*)[TILE_VALUES]>(scratch()) + finished % 2 * WARPS;
  int adder = warp - finished % (WARPS / ADDERS) * ADDERS;
  ++finished;
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[warp][i * LANES + lane] = sums[0][i] + sums[1][i];
  bool adds = adder >= 0 && adder < (GATED ? ADDERS / 2 : ADDERS);
  int row = lane / 4 + adder / 2 * (TILE / 2), row_of_x = lane % 4 * 2 + adder % 2;
  decltype(load(0, 0, 0)) loaded{};
  if (adds) loaded = load(tile, row, row_of_x);
  __syncthreads();
  if (!adds) return;
  float total = 0, up = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    total += parts[w][adder * LANES + lane];
    if constexpr (GATED) up += parts[w][(adder + 2) * LANES + lane];
  }
  if constexpr (GATED) total = total / (1 + __expf(-total)) * up;
  out(tile, row, row_of_x, total, loaded);
}

// A product of this thread block's tiles with inputs in registers, one per step.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void multiply_tiles(
    WeightStream& stream, int& finished, const StepInputs* x, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  int steps = steps_of(K, thread_of_step() / LANES);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles_of(PRODUCT); tile += gridDim.x) {
    float sums[2][4] = {};
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; ++step) {
      if (K / STEP % WARPS == 0 || step < steps) stream.multiply(x[step], sums);
    }
    finish_tile<PRODUCT == GATE_UP>(finished, tile, sums, load, out);
  }
}

// The same with inputs x [rows, K] that do not fit into registers: read step by step, for two tiles.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void multiply_pairs(
    WeightStream& stream, int& finished, const T* x, int rows, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  static_assert(tiles_together(PRODUCT) == 2, "tiles are in this order");
  int steps = steps_of(K, thread_of_step() / LANES);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles_of(PRODUCT); tile += 2 * gridDim.x) {
    int other = tile + gridDim.x;
    float sums[2][2][4] = {};
    StepInputs next;
    load_inputs<K>(x, rows, 0, next);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      StepInputs now = next;
      load_inputs<K>(x, rows, step + 1, next);
      now.finish();
      stream.multiply(now, sums[0]);
      if (other < tiles_of(PRODUCT)) stream.multiply(now, sums[1]);
    }
    finish_tile<false>(finished, tile, sums[0], load, out);
    if (other < tiles_of(PRODUCT)) finish_tile<false>(finished, other, sums[1], load, out);
  }
}

}  // namespace moxin
