// Quantised matrices as plain ones, concatenated, for MLX's product: [rows of all, WIDTH].
//
// Cost: reads the packed weights and writes 2 bytes per weight. For gate_proj and up_proj of Moxin at
// 8 bits: 125 MB and 235 MB (92 us at 3.9 TB/s).
//
// Constants that matmul_kernels.py defines in namespace config: T, BITS (8 or 4), GROUP, WIDTH (a
// multiple of 8), UNITS (eight weights each, per thread), THREADS.

#include "weights.cuh"

// MATRIX_PARAMETERS and MATRICES as in narrow_matmul.cu; end_i: total rows of matrices 0 to i.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) unpack_weights(
    MATRIX_PARAMETERS,
    config::T* out, int end_0, int end_1, int end_2) {
  using namespace moxin;
  using config::T, config::BITS, config::GROUP, config::WIDTH, config::UNITS, config::THREADS;
  constexpr int ROW_UNITS = WIDTH / 8;
  const Matrix<T> matrices[3] = {MATRICES};
  unsigned int low[UNITS], high[UNITS];
  T scales[UNITS], biases[UNITS];
  int first = blockIdx.x * UNITS * THREADS + threadIdx.x, total = end_2 * ROW_UNITS;
  // All loads first, so that they are in flight together.
#pragma unroll
  for (int i = 0; i < UNITS; ++i) {
    int unit = min(first + i * THREADS, total - 1), row = unit / ROW_UNITS;
    bool is_first = row < end_0, is_second = row < end_1;
    Matrix<T> matrix = is_first ? matrices[0] : is_second ? matrices[1] : matrices[2];
    long long at = unit - (is_first ? 0LL : is_second ? end_0 : end_1) * ROW_UNITS;
    const unsigned int* from = static_cast<const unsigned int*>(matrix.weight);
    if constexpr (BITS == 8) {
      uint2 words = reinterpret_cast<const uint2*>(from)[at];
      low[i] = words.x;
      high[i] = words.y;
    } else {
      low[i] = from[at];
    }
    scales[i] = matrix.scales[at / (GROUP / 8)];
    biases[i] = matrix.biases[at / (GROUP / 8)];
  }
#pragma unroll
  for (int i = 0; i < UNITS; ++i) {
    int unit = first + i * THREADS;
    if (unit >= total) return;
    float scale = to_float(scales[i]), bias = to_float(biases[i]), values[8];
    if constexpr (BITS == 4) bias -= NIBBLE_RAISE * scale;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      float quantised = BITS == 8 ? byte_value(k < 4 ? low[i] : high[i], k % 4)
                                  : raised_nibble(low[i], k);
      values[k] = quantised * scale + bias;
    }
    reinterpret_cast<uint4*>(out)[unit] = pack_eight<T>(values);
  }
}
