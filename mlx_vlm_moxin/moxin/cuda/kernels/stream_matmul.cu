// x [rows, width] times the transpose of up to three matrices, concatenated; or SwiGLU of two. For
// Hopper and up to 64 rows.
//
// Cost: reads every weight once; x once per thread block, from the cache. For gate_proj and up_proj of
// Moxin 125 MB at 8 bits (32 us at 3.9 TB/s).
//
// Constants that matmul_kernels.py defines in namespace config: T, BITS, GROUP, ROWS (8, 16, 32 or 64),
// GATED, Output (T if GATED, otherwise float), WARPS, STAGES.

#include "stream_matmul.cuh"

// MATRIX_PARAMETERS declares the arrays of one to three matrices, `const void* weight_i` and, if
// quantised, `const config::T* scales_i, biases_i`; MATRICES are the initialisers of moxin::Matrix.
extern "C" __global__ void __launch_bounds__(config::WARPS * moxin::LANES, 1) stream_matmul(
    const config::T* x,
    MATRIX_PARAMETERS,
    config::Output* out,  // [splits, rows, columns]; GATED: [rows, columns of one matrix]
    int end_0, int end_1, int end_2,  // see moxin::StreamedMatrices
    int rows, int width, int splits,
    int active) {  // warps of a thread block that have rows of weights
  using namespace moxin;
  StreamedMatrices<config::T> matrices{{MATRICES}, {end_0, end_1, end_2}};
  stream_columns<config::T, config::BITS, config::GROUP, config::ROWS, config::WARPS, config::STAGES,
                 config::GATED>(
      x, matrices, rows, width, blockIdx.x % splits, splits, blockIdx.x / splits * active, active,
      out);
}
