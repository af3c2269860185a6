// Products of the vision towers on any GPU: tensor cores, tiles of 96 rows (three tiles cover 256 or 261
// tokens with little waste). Tiles go through shared memory in STAGES stages, filled by cp.async, with
// zeros outside the matrices.

#pragma once

#include "tower_product.cuh"

namespace moxin {

constexpr int TILE_ROWS = config::TILE_ROWS;

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

template <Shape SHAPE>
struct TileOf {
  using type = Tile<config::WIDE_WIDTH, config::WIDE_STAGES, config::WIDE_GROUPS>;
};

template <>
struct TileOf<NARROW> {
  using type = Tile<config::NARROW_WIDTH, config::NARROW_STAGES, config::NARROW_GROUPS>;
};

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
  int column = thread % (TILE::WIDTH / 8) * 8;  // the first that this thread finishes
  Columns<T> columns(product, first_column + column);
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
#pragma unroll 3
  for (int row = thread / (TILE::WIDTH / 8); row < TILE_ROWS; row += THREADS / (TILE::WIDTH / 8)) {
    if (first_row + row < product.rows && first_column + column < product.N) {
      finish<T, EPILOGUE>(
          product, columns, first_row + row, first_column + column, results + row * PITCH + column);
    }
  }
}

template <typename TILE, typename T>
__device__ int count_tiles(const Product<T>& product) {
  return (product.rows + TILE_ROWS - 1) / TILE_ROWS * ((product.N + TILE::WIDTH - 1) / TILE::WIDTH);
}

// The tiles of both towers' products; make(tower) returns the Product of tower 0 or 1.
template <typename T, Epilogue EPILOGUE, Shape SHAPE, typename Make>
__device__ void multiply_both(GridBarrier& barrier, Make make) {
  using TILE = typename TileOf<SHAPE>::type;
  int first = count_tiles<TILE>(make(0)), count = first + count_tiles<TILE>(make(1));
  int team = thread_of_step() / TILE::THREADS;
  int teams = gridDim.x * (config::THREADS / TILE::THREADS);
  for (int tile = team * gridDim.x + blockIdx.x; tile < count; tile += teams) {
    bool is_first = tile < first;
    multiply_tile<T, EPILOGUE, TILE>(
        make(!is_first), is_first ? tile : tile - first, team, barrier);
    sync_team<TILE::THREADS>(team);
  }
  barrier.wait();
  barrier.arrive();
}

}  // namespace moxin
