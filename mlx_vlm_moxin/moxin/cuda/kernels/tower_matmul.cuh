// Products of the vision towers: x [rows, K] times the transpose of weight [N, K].
//
// Tensor cores, tiles of 96 rows (three tiles cover 256 or 261 tokens with little waste). Tiles go
// through shared memory in STAGES stages, filled by cp.async, with zeros outside the matrices.

#pragma once

#include "grid.cuh"
#include "tensor_cores.cuh"

namespace moxin {

constexpr int TILE_ROWS = config::TILE_ROWS;
constexpr int TILE_K = config::TILE_K;
constexpr int VECTORS = TILE_K / 8;  // eight of 16 bytes: 128 bytes of a row

// A team computes a tile of WIDTH columns with GROUPS groups of four warps (two by two). Each group
// multiplies its share of every stage's K and the sums are added at the end, which keeps a
// multiprocessor with a single tile busy.
template <int WIDTH_, int STAGES_, int GROUPS_>
struct Tile {
  static constexpr int WIDTH = WIDTH_, STAGES = STAGES_, GROUPS = GROUPS_, WARPS = 4;
  static constexpr int ROWS = TILE_ROWS / 2, COLUMNS = WIDTH / 2;  // of a warp
  static constexpr int THREADS = GROUPS * WARPS * LANES;
  static constexpr int STAGE_BYTES = (TILE_ROWS + WIDTH) * TILE_K * 2;
};

enum Epilogue { BIAS, BIAS_GELU, BIAS_SCALE_ADD };

// x is [rows, K], weight [N, K], out and residual [rows, N]. gamma (may be null) and residual are
// used by BIAS_SCALE_ADD only. Sizes are variables, so that both towers share machine code.
template <typename T>
struct Product {
  const T* x;
  const T* weight;
  const T* bias;
  const T* gamma;
  const T* residual;
  T* out;
  int rows, K, N;
};

// Address of a vector of a row of a tile; the exclusive or spreads a column over all banks.
__device__ inline unsigned int tile_address(unsigned int tile, int row, int vector) {
  return tile + row * (TILE_K * 2) + ((vector ^ (row & 7)) * 16);
}

// A thread's share of copying ROWS rows of `matrix` [limit, K] into tiles. Its rows are a multiple of
// 8 apart, so the swizzle of tile_address is the same for all of them.
template <typename T, int ROWS, int THREADS>
struct Copy {
  static constexpr int COUNT = ROWS * VECTORS / THREADS, STRIDE = THREADS / VECTORS;
  static_assert(ROWS * VECTORS % THREADS == 0 && STRIDE % 8 == 0, "threads share the rows evenly");
  const T* matrix;
  const T* from;
  int row, column, limit, K;

  __device__ Copy(const T* matrix, int first, int limit, int K, int thread)
      : matrix(matrix),
        row(thread / VECTORS),
        column(thread % VECTORS * 8),
        limit(limit - first),
        K(K) {
    from = matrix + static_cast<long long>(first + row) * K + column;
  }

  __device__ void start(unsigned int tile, int k) const {
    unsigned int to = tile_address(tile, row, column / 8);
    bool inside = k + column < K;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      bool exists = inside && row + i * STRIDE < limit;
      copy_async(to + i * STRIDE * TILE_K * 2, exists ? from + i * STRIDE * K + k : matrix, exists);
    }
  }
};

// Exact GELU, not the tanh approximation.
__device__ __noinline__ float gelu(float x) { return x * 0.5f * (1 + erff(x * 0.70710678f)); }

// Applies the epilogue to eight sums of one row, from `column` on, and stores the result.
template <typename T, Epilogue EPILOGUE>
__device__ void finish(const Product<T>& product, int row, int column, const float* sums) {
  long long at = static_cast<long long>(row) * product.N + column;
  float bias[8], gamma[8], residual[8];
  unpack<T>(*reinterpret_cast<const uint4*>(product.bias + column), bias);
  if constexpr (EPILOGUE == BIAS_SCALE_ADD) {
    unpack<T>(*reinterpret_cast<const uint4*>(product.residual + at), residual);
    if (product.gamma) unpack<T>(*reinterpret_cast<const uint4*>(product.gamma + column), gamma);
  }
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float y = sums[i] + bias[i];
    if constexpr (EPILOGUE == BIAS_GELU) y = gelu(y);
    if constexpr (EPILOGUE == BIAS_SCALE_ADD) {
      y = (product.gamma ? y * gamma[i] : y) + residual[i];
    }
    values[i] = y;
  }
  *reinterpret_cast<uint4*>(product.out + at) = pack_eight<T>(values);
}

// A team computes tile `tile` of count_tiles(). Loads of weights start before the barrier, loads of x
// after it.
template <typename T, Epilogue EPILOGUE, typename TILE>
__device__ void multiply_tile(
    const Product<T>& product, int tile, int team, GridBarrier& barrier) {
  constexpr int THREADS = TILE::THREADS, STAGES = TILE::STAGES, GROUPS = TILE::GROUPS;
  constexpr int ROWS = TILE::ROWS, COLUMNS = TILE::COLUMNS, STAGE_BYTES = TILE::STAGE_BYTES;
  unsigned char* memory = shared + team * STAGES * STAGE_BYTES;
  unsigned int stages = static_cast<unsigned int>(__cvta_generic_to_shared(memory));
  int steps = (product.K + TILE_K - 1) / TILE_K;
  // Consecutive thread blocks share a tile of the weight.
  int row_tiles = (product.rows + TILE_ROWS - 1) / TILE_ROWS;
  int first_row = tile % row_tiles * TILE_ROWS, first_column = tile / row_tiles * TILE::WIDTH;
  int thread = thread_of_step() % THREADS, lane = thread % LANES, warp = thread / LANES;
  int warp_row = warp % 2 * ROWS, warp_column = warp % TILE::WARPS / 2 * COLUMNS;
  int group = warp / TILE::WARPS;

  Copy<T, TILE_ROWS, THREADS> x(product.x, first_row, product.rows, product.K, thread);
  Copy<T, TILE::WIDTH, THREADS> weight(product.weight, first_column, product.N, product.K, thread);
  auto start_x = [&](int step) {
    if (step < steps) x.start(stages + step % STAGES * STAGE_BYTES, step * TILE_K);
    asm volatile("cp.async.commit_group;");
  };
  auto start_weight = [&](int step) {
    unsigned int stage = stages + step % STAGES * STAGE_BYTES;
    if (step < steps) weight.start(stage + TILE_ROWS * TILE_K * 2, step * TILE_K);
  };
  for (int step = 0; step < STAGES - 1; ++step) start_weight(step);
  barrier.wait();
  for (int step = 0; step < STAGES - 1; ++step) start_x(step);

  float sums[ROWS / 16][COLUMNS / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" : : "n"(STAGES - 2));
    sync_team<THREADS>(team);
    start_weight(step + STAGES - 1);
    start_x(step + STAGES - 1);
    unsigned int x_tile = stages + step % STAGES * STAGE_BYTES;
    unsigned int weight_tile = x_tile + TILE_ROWS * TILE_K * 2;
#pragma unroll
    for (int i = 0; i < VECTORS / GROUPS; i += 2) {
      int k = group * (VECTORS / GROUPS) + i;
      unsigned int a[ROWS / 16][4], b[COLUMNS / 16][4];
#pragma unroll
      for (int m = 0; m < ROWS / 16; ++m) {
        int row = warp_row + m * 16 + lane % 16;
        load_matrices(a[m], tile_address(x_tile, row, k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < COLUMNS / 16; ++n) {
        int row = warp_column + n * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b[n], tile_address(weight_tile, row, k + lane / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < ROWS / 16; ++m) {
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; ++n) {
          multiply_add<T>(sums[m][n], a[m], b[n / 2] + n % 2 * 2);
        }
      }
    }
  }
  // The sums go through shared memory, so that a thread finishes eight consecutive columns.
  constexpr int PITCH = TILE::WIDTH + 4;
  float* results = reinterpret_cast<float*>(memory);
  asm volatile("cp.async.wait_group 0;");
#pragma unroll
  for (int turn = 0; turn < GROUPS; ++turn) {
    sync_team<THREADS>(team);
    if (turn != group) continue;
#pragma unroll
    for (int m = 0; m < ROWS / 16; ++m) {
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int row = warp_row + m * 16 + lane / 4 + half * 8;
          float2* to = reinterpret_cast<float2*>(
              results + row * PITCH + warp_column + n * 8 + lane % 4 * 2);
          float2 before = turn ? *to : float2{0, 0};
          *to = float2{before.x + sums[m][n][2 * half], before.y + sums[m][n][2 * half + 1]};
        }
      }
    }
  }
  sync_team<THREADS>(team);
#pragma unroll 1
  for (int i = thread; i < TILE_ROWS * TILE::WIDTH / 8; i += THREADS) {
    int row = i / (TILE::WIDTH / 8), column = i % (TILE::WIDTH / 8) * 8;
    if (first_row + row < product.rows && first_column + column < product.N) {
      finish<T, EPILOGUE>(
          product, first_row + row, first_column + column, results + row * PITCH + column);
    }
  }
}

template <typename TILE, typename T>
__device__ int count_tiles(const Product<T>& product) {
  return (product.rows + TILE_ROWS - 1) / TILE_ROWS * ((product.N + TILE::WIDTH - 1) / TILE::WIDTH);
}

}  // namespace moxin
