// x [rows, width] times the transpose of up to three matrices, concatenated; or SwiGLU of two.
//
// Cost: reads every weight once per tile of ROWS rows (from the cache after the first tile); 2 * rows
// FLOPs per weight, in tensor cores. For gate_proj and up_proj of Moxin: 235 MB at 16 bits (60 us at
// 3.9 TB/s) and 15 GFLOPs with 64 rows.
//
// Constants that matmul_kernels.py defines in namespace config: T, BITS, GROUP, ROWS (of a tile),
// GATED, TILES, Output (T if GATED, otherwise float), MIN_BLOCKS (per multiprocessor), UNROLL (all
// vectors of x for a lane's 16 bytes of weights in one piece of code); TILE_K, STAGES, PRODUCT_WARPS,
// THREADS.

#include "narrow_matmul.cuh"

// MATRIX_PARAMETERS declares the arrays of one to three matrices, `const void* weight_i` and, if
// quantised, `const config::T* scales_i, biases_i`; MATRICES are the initialisers of moxin::Matrix.
extern "C" __global__ void __launch_bounds__(config::THREADS, config::MIN_BLOCKS) narrow_matmul(
    const config::T* x,
    MATRIX_PARAMETERS,
    config::Output* out,  // [splits, rows, columns]; GATED: [rows, columns of one matrix]
    int end_0, int end_1, int end_2,  // see moxin::Matrices
    int rows, int width, int splits) {
  using namespace moxin;
  Matrices<config::T> matrices{{MATRICES}, {end_0, end_1, end_2}};
  constexpr int COLUMNS = WARP_COLUMNS<config::GATED, config::TILES>;
  // Thread blocks that share weights are consecutive.
  int tiles = (rows + config::ROWS - 1) / config::ROWS, split = blockIdx.x / tiles % splits;
  int first_row = blockIdx.x % tiles * config::ROWS;
  int warp = blockIdx.x / tiles / splits * PRODUCT_WARPS + threadIdx.x / LANES;
  multiply_columns<config::T, config::BITS, config::GROUP, config::ROWS, config::GATED,
                   config::TILES>(
      x, matrices, RowRange{first_row, min(config::ROWS, rows - first_row), rows}, width, split,
      splits, warp * COLUMNS, out, [] {});
}
