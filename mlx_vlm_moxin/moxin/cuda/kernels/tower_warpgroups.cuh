// Products of the vision towers on Hopper GPUs: x [rows, K] times the transpose of weight [N, K] by
// warpgroups.
//
// A thread block computes a tile of 128 features (rows of the weight, 64 for each of its two warpgroups)
// and TILE_TOKENS tokens, which are the columns of SIDE_BY_SIDE instructions. A narrow product's K may be
// divided into PARTS parts, whose sums layer_norm adds up.
//
// Macros that wgmma.py defines for instructions of WGMMA_COLUMNS columns: WGMMA_SHAPE, WGMMA_SUMS,
// WGMMA_INPUTS (the instruction's text) and WGMMA_OPERANDS(sums).

#pragma once

#include "tower_product.cuh"
#include "warpgroup.cuh"

namespace moxin {

constexpr int TILE_FEATURES = config::THREADS / WARPGROUP_THREADS * WARPGROUP_ROWS;
constexpr int SIDE_BY_SIDE = config::SIDE_BY_SIDE;
constexpr int TILE_TOKENS = SIDE_BY_SIDE * WGMMA_COLUMNS;
constexpr int SUMS = WARPGROUP_ROWS * WGMMA_COLUMNS / WARPGROUP_THREADS;
constexpr int STAGES = config::STAGES;
constexpr int WEIGHT_BYTES = TILE_FEATURES * TILE_K * 2;
constexpr int STAGE_BYTES = WEIGHT_BYTES + TILE_TOKENS * TILE_K * 2;
// From the descriptor of one instruction's tokens to the next one's.
constexpr int NEXT_TOKENS = WGMMA_COLUMNS * TILE_K * 2 >> 4;

template <Shape SHAPE>
constexpr int PARTS_OF = SHAPE == NARROW && config::PARTS > 0 ? config::PARTS : 1;

// sums [64, WGMMA_COLUMNS] += a [64, 16] times the transpose of b [WGMMA_COLUMNS, 16], both in shared
// memory. Of a thread of warp w of the warpgroup, sums[4 * j + 2 * h + i] is in row
// 16 * w + lane / 4 + 8 * h and column 8 * j + lane % 4 * 2 + i.
template <typename T>
__device__ inline void multiply_tiles(
    float (&sums)[SUMS], unsigned long long a, unsigned long long b);

#define MOXIN_MULTIPLY_TILES(T, TYPE)                                                              \
  template <>                                                                                      \
  __device__ inline void multiply_tiles<T>(                                                        \
      float (&sums)[SUMS], unsigned long long a, unsigned long long b) {                           \
    asm volatile("wgmma.mma_async.sync.aligned." WGMMA_SHAPE ".f32." TYPE "." TYPE                 \
                 " {" WGMMA_SUMS "}, " WGMMA_INPUTS ", 1, 1, 1, 0, 0;"                             \
                 : WGMMA_OPERANDS(sums)                                                            \
                 : "l"(a), "l"(b));                                                                \
  }

MOXIN_MULTIPLY_TILES(bfloat16, "bf16")
MOXIN_MULTIPLY_TILES(float16, "f16")
#undef MOXIN_MULTIPLY_TILES

// Keeps the compiler from reading the sums earlier.
__device__ inline void use_sums(float (&sums)[SIDE_BY_SIDE][SUMS]) {
#pragma unroll
  for (auto& some : sums) {
#pragma unroll
    for (float& sum : some) asm volatile("" : "+f"(sum) : : "memory");
  }
}

template <typename T>
__device__ int count_tiles(const Product<T>& product, int parts) {
  return (product.rows + TILE_TOKENS - 1) / TILE_TOKENS *
         ((product.N + TILE_FEATURES - 1) / TILE_FEATURES) * parts;
}

// Stores the sums of a tile over a part of K.
template <typename T>
__device__ void store_parts(
    const Product<T>& product, int part, int first_row, int first_column, int thread,
    const float* results, int pitch) {
  constexpr int VECTORS = TILE_FEATURES / 4;
  int feature = thread % VECTORS * 4;
  if (first_column + feature >= product.N) return;
  float* to = product.sums + static_cast<long long>(part) * product.rows * product.N + first_column + feature;
#pragma unroll
  for (int i = 0; i < TILE_TOKENS * VECTORS / config::THREADS; ++i) {
    int token = thread / VECTORS + i * (config::THREADS / VECTORS);
    if (first_row + token >= product.rows) continue;
    *reinterpret_cast<float4*>(to + static_cast<long long>(first_row + token) * product.N) =
        *reinterpret_cast<const float4*>(results + token * pitch + feature);
  }
}

// A thread block computes tile `tile` of count_tiles(). Loads of weights start before the barrier, loads
// of x after it.
template <typename T, Epilogue EPILOGUE, int PARTS>
__device__ void multiply_tile(const Product<T>& product, int tile, GridBarrier& barrier) {
  // Tiles are aligned to 1,024 bytes.
  unsigned int begin_of_shared = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  unsigned int stages = (begin_of_shared + 1023) / 1024 * 1024;
  // Consecutive thread blocks share a tile of the weight.
  int token_tiles = (product.rows + TILE_TOKENS - 1) / TILE_TOKENS;
  int feature_tiles = (product.N + TILE_FEATURES - 1) / TILE_FEATURES;
  int first_row = tile % token_tiles * TILE_TOKENS;
  int first_column = tile / token_tiles % feature_tiles * TILE_FEATURES;
  int part = tile / token_tiles / feature_tiles;
  int all_steps = (product.K + TILE_K - 1) / TILE_K;
  int begin = all_steps * part / PARTS, steps = all_steps * (part + 1) / PARTS - begin;
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  int group = thread / WARPGROUP_THREADS;

  Copy<T, TILE_FEATURES, config::THREADS> weight(
      product.weight, first_column, product.N, product.K, thread);
  Copy<T, TILE_TOKENS, config::THREADS> x(product.x, first_row, product.rows, product.K, thread);
  auto start_weight = [&](int step) {
    if (step < steps) weight.start(stages + step % STAGES * STAGE_BYTES, (begin + step) * TILE_K);
  };
  auto start_x = [&](int step) {
    unsigned int stage = stages + step % STAGES * STAGE_BYTES;
    if (step < steps) x.start(stage + WEIGHT_BYTES, (begin + step) * TILE_K);
    commit_copies();
  };
  // While the products of a step are computed, those of the step before may still read their stage.
  constexpr int AHEAD = STAGES - 2;
#pragma unroll 1
  for (int step = 0; step < AHEAD; ++step) start_weight(step);
  // The first feature that this thread finishes.
  constexpr int TOKENS_AT_ONCE = config::THREADS / (TILE_FEATURES / 8);
  int feature = thread % (TILE_FEATURES / 8) * 8;
  Columns<T> columns(product, first_column + feature);
  barrier.wait();
#pragma unroll 1
  for (int step = 0; step < AHEAD; ++step) start_x(step);

  float sums[SIDE_BY_SIDE][SUMS] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<AHEAD - 1>();
    // What this thread copied becomes visible to the tensor cores.
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
    __syncthreads();
    unsigned int stage = stages + step % STAGES * STAGE_BYTES;
    unsigned long long a = describe_tile(stage + group * WARPGROUP_ROWS * TILE_K * 2);
    unsigned long long b = describe_tile(stage + WEIGHT_BYTES);
    begin_products();
#pragma unroll
    for (int i = 0; i < TILE_K / 16; ++i) {
#pragma unroll
      for (int j = 0; j < SIDE_BY_SIDE; ++j) {
        multiply_tiles<T>(sums[j], a + i * NEXT_VALUES, b + j * NEXT_TOKENS + i * NEXT_VALUES);
      }
    }
    commit_products();
    start_weight(step + AHEAD);
    start_x(step + AHEAD);
    wait_products<1>();
  }
  wait_products<0>();
  use_sums(sums);
  // The sums go through shared memory, so that a thread finishes eight consecutive features.
  constexpr int PITCH = TILE_FEATURES + 4;
  float* results = reinterpret_cast<float*>(shared);
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < SIDE_BY_SIDE * SUMS; ++i) {
    int token = i / 4 * 8 + lane % 4 * 2 + i % 2, feature = warp * 16 + lane / 4 + i / 2 % 2 * 8;
    results[token * PITCH + feature] = sums[i / SUMS][i % SUMS];
  }
  __syncthreads();
  if constexpr (EPILOGUE == PARTIAL_SUMS) {
    store_parts(product, part, first_row, first_column, thread, results, PITCH);
    return;
  }
#pragma unroll 3
  for (int token = thread / (TILE_FEATURES / 8); token < TILE_TOKENS; token += TOKENS_AT_ONCE) {
    if (first_row + token < product.rows && first_column + feature < product.N) {
      finish<T, EPILOGUE>(product, columns, first_row + token, first_column + feature,
                          results + token * PITCH + feature);
    }
  }
}

// The tiles of both towers' products; make(tower) returns the Product of tower 0 or 1.
template <typename T, Epilogue EPILOGUE, Shape SHAPE, typename Make>
__device__ void multiply_both(GridBarrier& barrier, Make make) {
  constexpr int PARTS = PARTS_OF<SHAPE>;
  int first = count_tiles(make(0), PARTS), count = first + count_tiles(make(1), PARTS);
  for (int tile = blockIdx.x; tile < count; tile += gridDim.x) {
    bool is_first = tile < first;
    multiply_tile<T, EPILOGUE, PARTS>(make(!is_first), is_first ? tile : tile - first, barrier);
    __syncthreads();
  }
  barrier.wait();
  barrier.arrive();
}

}  // namespace moxin
