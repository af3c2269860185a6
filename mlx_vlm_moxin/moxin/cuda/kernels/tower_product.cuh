// A matrix product of the vision towers, x [rows, K] times the transpose of weight [N, K], without its
// loop: what is multiplied, how tiles are copied to shared memory, and what happens to the sums.

#pragma once

#include "grid.cuh"
#include "tensor_cores.cuh"

namespace moxin {

constexpr int TILE_K = config::TILE_K;
constexpr int VECTORS = TILE_K / 8;  // eight of 16 bytes: 128 bytes of a row

// A narrow product has fewer tiles than the GPU has multiprocessors.
enum Shape { WIDE, NARROW };

// PARTIAL_SUMS: stores sums over a part of K, to which layer_norm applies BIAS_SCALE_ADD.
enum Epilogue { BIAS, BIAS_SCALE_ADD, PARTIAL_SUMS };

// x is [rows, K], weight [N, K], out and residual [rows, N], sums [parts, rows, N]. gamma (may be null)
// and residual are used by BIAS_SCALE_ADD only. Sizes are variables, so that both towers share machine
// code.
template <typename T>
struct Product {
  const T* x;
  const T* weight;
  const T* bias;
  const T* gamma;
  const T* residual;
  T* out;
  float* sums;
  int rows, K, N;
  bool has_gelu;  // after BIAS
};

// Address of a vector of a row of a tile; the exclusive or spreads a column over all banks.
__device__ inline unsigned int tile_address(unsigned int tile, int row, int vector) {
  return tile + row * (TILE_K * 2) + ((vector ^ (row & 7)) * 16);
}

// A thread's share of copying ROWS rows of `matrix` [limit, K] into tiles. Its rows are a multiple of
// 8 apart, so the swizzle of tile_address is the same for all of them.
template <typename T, int ROWS, int THREADS>
struct Copy {
  static constexpr int STRIDE = THREADS / VECTORS;
  static_assert(STRIDE % 8 == 0, "the same swizzle");
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
    for (int i = 0; i < (ROWS + STRIDE - 1) / STRIDE; ++i) {
      if ((i + 1) * STRIDE > ROWS && row >= ROWS % STRIDE) break;
      bool exists = inside && row + i * STRIDE < limit;
      copy_async(to + i * STRIDE * TILE_K * 2, exists ? from + i * STRIDE * K + k : matrix, exists);
    }
  }
};

// Exact GELU, not the tanh approximation. The complementary error function of |x| / sqrt(2) is formula
// 7.1.26 of Abramowitz and Stegun: an absolute error of at most 4e-7 here, with half of erff's instructions.
__device__ inline float gelu(float x) {
  float z = fabsf(x) * 0.70710678f, t = __fdividef(1, 1 + 0.3275911f * z);
  float sum = 1.061405429f;
  sum = sum * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  float tail = 0.5f * sum * t * exp2f(-1.44269504f * z * z);
  return x * (x > 0 ? 1 - tail : tail);
}

// What a thread adds to the eight columns that it finishes in each of its rows. It is loaded before the
// product, because the first read of a bias takes longer than the rest of an epilogue.
template <typename T>
struct Columns {
  uint4 bias = {}, gamma = {};

  __device__ Columns(const Product<T>& product, int column) {
    if (column >= product.N) return;
    bias = *reinterpret_cast<const uint4*>(product.bias + column);
    if (product.gamma) gamma = *reinterpret_cast<const uint4*>(product.gamma + column);
  }
};

// Applies the epilogue to eight sums of one row, from `column` on, and stores the result.
template <typename T, Epilogue EPILOGUE>
__device__ void finish(
    const Product<T>& product, const Columns<T>& columns, int row, int column, const float* sums) {
  long long at = static_cast<long long>(row) * product.N + column;
  float bias[8], gamma[8], residual[8];
  unpack<T>(columns.bias, bias);
  if constexpr (EPILOGUE == BIAS_SCALE_ADD) {
    unpack<T>(*reinterpret_cast<const uint4*>(product.residual + at), residual);
    if (product.gamma) unpack<T>(columns.gamma, gamma);
  }
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float y = sums[i] + bias[i];
    if (EPILOGUE == BIAS && product.has_gelu) y = gelu(y);
    if constexpr (EPILOGUE == BIAS_SCALE_ADD) {
      y = (product.gamma ? y * gamma[i] : y) + residual[i];
    }
    values[i] = y;
  }
  *reinterpret_cast<uint4*>(product.out + at) = pack_eight<T>(values);
}

}  // namespace moxin
