// x [rows, width] times the transpose of up to three matrices, concatenated; or SwiGLU of two.
//
// Cost: reads every weight once; 2 * rows FLOPs per weight, in tensor cores. For gate_proj and
// up_proj of Moxin: 235 MB at 16 bits (60 us at 3.9 TB/s) and 15 GFLOPs with 64 rows.
//
// Constants that layerwise_kernels.py defines in namespace config: T, BITS, GROUP, ROWS (16, 32 or 64,
// at least `rows`), GATED, TILES, Output (T if GATED, otherwise float); TILE_K, STAGES, PRODUCT_WARPS,
// THREADS.

#include "narrow_matmul.cuh"

// Missing matrices and, at 16 bits, scales and biases are other arrays that are not read.
extern "C" __global__ void __launch_bounds__(config::THREADS, 2) narrow_matmul(
    const config::T* x, const void* weight_0, const config::T* scales_0, const config::T* biases_0,
    const void* weight_1, const config::T* scales_1, const config::T* biases_1,
    const void* weight_2, const config::T* scales_2, const config::T* biases_2,
    config::Output* out,  // [splits, rows, columns]; GATED: [rows, columns of one matrix]
    int end_0, int end_1, int end_2,  // see moxin::Matrices
    int rows, int width, int splits) {
  using namespace moxin;
  Matrices<config::T> matrices{{{weight_0, scales_0, biases_0},
                                {weight_1, scales_1, biases_1},
                                {weight_2, scales_2, biases_2}},
                               {end_0, end_1, end_2}};
  constexpr int COLUMNS = WARP_COLUMNS<config::GATED, config::TILES>;
  int warp = blockIdx.x / splits * PRODUCT_WARPS + threadIdx.x / LANES;
  multiply_columns<config::T, config::BITS, config::GROUP, config::ROWS, config::GATED,
                   config::TILES>(
      x, matrices, rows, width, blockIdx.x % splits, splits,
      warp * COLUMNS, out, [] {});
}
