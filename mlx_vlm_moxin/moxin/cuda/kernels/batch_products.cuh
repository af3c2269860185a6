// Products of up to 16 rows with weights that arrive in shared memory (weight_stream.cuh): the inputs
// of a thread block, which its warps hold in registers, their RMS norm, and the results.
//
// The operands are swapped: a product of tensor cores has 16 rows of weights and eight rows of x.

#pragma once

#include "weight_stream.cuh"

namespace moxin {

constexpr int ROWS = 8 * ROW_TILES;
constexpr int TILE_VALUES = TILE * ROWS;
static_assert(ROW_TILES == 1 || ROW_TILES == 2, "sums are of two tiles");

// Shared memory after the weights: parts of the results of two tiles, or what attention needs.
__device__ inline unsigned char* scratch() { return shared + WARPS * SLOTS * SLOT_BYTES; }

// Rows of the input and tiles of weights that a thread block multiplies.
struct Share {
  int rows;
  int first, stride;  // tiles first, first + stride, ...
};

// Steps of a warp, at most.
template <int K>
constexpr int MOST_STEPS = (K / STEP + WARPS - 1) / WARPS;

// Column of a lane's vector v in its warp's step `step`.
__device__ inline int column_of(int step, int v) {
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  return (step * WARPS + warp) * STEP + lane % 4 * PACK + v / PLANES * 4 * PACK + v % PLANES * 8;
}

// A lane's inputs of step `step` of a warp: of rows lane / 4 and lane / 4 + 8 of x [rows, K], 0 where
// there is none.
template <int K>
__device__ inline void load_inputs(const T* x, int rows, int step, uint4 (*to)[VECTORS]) {
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    int row = tile * 8 + thread_of_step() % LANES / 4;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      int column = column_of(step, v);
      bool inside = row < rows && column < K;
      to[tile][v] = inside ? *reinterpret_cast<const uint4*>(x + row * K + column) : uint4{0, 0, 0, 0};
    }
  }
}

// A lane's columns of a norm's weight [K]. Loaded early, as far as there are registers for it.
template <int K>
class NormWeight {
 public:
  __device__ explicit NormWeight(const T* weight) : weight_(weight) {
    if constexpr (IS_EARLY) {
#pragma unroll
      for (int step = 0; step < MOST_STEPS<K>; ++step) load(step, vectors_[step]);
    }
  }

  __device__ void get(int step, uint4* to) const {
    if constexpr (IS_EARLY) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) to[v] = vectors_[step][v];
    } else {
      load(step, to);
    }
  }

 private:
  static constexpr bool IS_EARLY = ROW_TILES == 1;

  __device__ void load(int step, uint4* to) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      to[v] = *reinterpret_cast<const uint4*>(weight_ + min(column_of(step, v), K - 8));
    }
  }

  const T* weight_;
  uint4 vectors_[IS_EARLY ? MOST_STEPS<K> : 1][VECTORS];
};

// Keeps the compiler from holding what it has computed from v.
__device__ inline void forget(uint4& v) {
  asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

// RMS norm of the rows of inputs that the lanes of a thread block hold.
template <int K>
__device__ inline void normalise(uint4 (*x)[ROW_TILES][VECTORS], const NormWeight<K>& weight) {
  __shared__ float squares[WARPS][ROWS];
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    float sum = 0;
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        float values[8];
        unpack<T>(x[step][tile][v], values);
#pragma unroll
        for (float value : values) sum += value * value;
      }
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (lane % 4 == 0) squares[warp][tile * 8 + lane / 4] = sum;
  }
  __syncthreads();
  float scales[ROW_TILES];
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) total += squares[w][tile * 8 + lane / 4];
    scales[tile] = rsqrtf(total / K + config::EPS);
  }
#pragma unroll
  for (int step = 0; step < MOST_STEPS<K>; ++step) {
    uint4 weights[VECTORS];
    weight.get(step, weights);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float factors[8];
      unpack<T>(weights[v], factors);
#pragma unroll
      for (int tile = 0; tile < ROW_TILES; ++tile) {
        float values[8];
        forget(x[step][tile][v]);
        unpack<T>(x[step][tile][v], values);
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] *= scales[tile] * factors[i];
        x[step][tile][v] = pack_eight<T>(values);
      }
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
  constexpr int ADDERS = 4 * ROW_TILES, USED = GATED ? ADDERS / 2 : ADDERS;
  static_assert(WARPS % ADDERS == 0, "each adder is a warp");
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  auto parts = reinterpret_cast<float(*)[TILE_VALUES]>(scratch()) + finished % 2 * WARPS;
  int adder = warp - finished % (WARPS / ADDERS) * ADDERS;
  ++finished;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (ROW_TILES == 1) {
      parts[warp][i * LANES + lane] = sums[0][i] + sums[1][i];
    } else {
      parts[warp][i * LANES + lane] = sums[0][i];
      parts[warp][(4 + i) * LANES + lane] = sums[1][i];
    }
  }
  bool adds = adder >= 0 && adder < USED;
  int row_tile = adder / (GATED ? 2 : 4), i = adder % (GATED ? 2 : 4);
  int row = lane / 4 + i / 2 * (TILE / 2), row_of_x = row_tile * 8 + lane % 4 * 2 + i % 2;
  decltype(load(0, 0, 0)) loaded{};
  if (adds) loaded = load(tile, row, row_of_x);
  __syncthreads();
  if (!adds) return;
  float total = 0, up = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    total += parts[w][(row_tile * 4 + i) * LANES + lane];
    if constexpr (GATED) up += parts[w][(row_tile * 4 + i + 2) * LANES + lane];
  }
  if constexpr (GATED) total = total / (1 + __expf(-total)) * up;
  out(tile, row, row_of_x, total, loaded);
}

// A product of this thread block's tiles with inputs [steps, ROW_TILES, VECTORS] in registers.
template <int PRODUCT, typename Load, typename Out>
__device__ inline void multiply_tiles(
    WeightStream& stream, int& finished, const Share& share, const uint4 (*x)[ROW_TILES][VECTORS],
    Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  int steps = steps_of(K, thread_of_step() / LANES);
#pragma unroll 1
  for (int tile = share.first; tile < tiles_of(PRODUCT); tile += share.stride) {
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
    WeightStream& stream, int& finished, const Share& share, const T* x, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  static_assert(tiles_together(PRODUCT) == 2, "tiles are in this order");
  int steps = steps_of(K, thread_of_step() / LANES);
#pragma unroll 1
  for (int tile = share.first; tile < tiles_of(PRODUCT); tile += 2 * share.stride) {
    int other = tile + share.stride;
    float sums[2][2][4] = {};
    uint4 next[ROW_TILES][VECTORS];
    load_inputs<K>(x, share.rows, 0, next);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      uint4 now[ROW_TILES][VECTORS];
#pragma unroll
      for (int row_tile = 0; row_tile < ROW_TILES; ++row_tile) {
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) now[row_tile][v] = next[row_tile][v];
      }
      load_inputs<K>(x, share.rows, step + 1, next);
      stream.multiply(now, sums[0]);
      if (other < tiles_of(PRODUCT)) stream.multiply(now, sums[1]);
    }
    finish_tile<false>(finished, tile, sums[0], load, out);
    if (other < tiles_of(PRODUCT)) finish_tile<false>(finished, other, sums[1], load, out);
  }
}

}  // namespace moxin
