// Products of up to 64 rows, and of a few hundred rows with quantised weights: x [rows, K] times the
// transpose of weights [N, K].
//
// With few rows the product is limited by reading the weights once. A warp loads its rows of the
// weights from global memory directly into the registers of tensor-core fragments: in mma m16n8k16,
// lane 4 g + j holds row g at k = 2 j, 2 j + 1, 2 j + 8 and 2 j + 9. Which values of a row are at
// these k does not matter as long as x uses the same order, so a lane loads 16 consecutive bytes. x
// goes through shared memory, for all warps of the thread block.

#pragma once

#include "grid.cuh"
#include "tensor_cores.cuh"
#include "weights.cuh"

namespace moxin {

// Tiling, defined by tiling.py: values of K per step, stages of x in shared memory, and warps of a
// thread block.
constexpr int TILE_K = config::TILE_K;
constexpr int VECTORS = TILE_K / 8;
constexpr int STAGES = config::STAGES;
constexpr int PRODUCT_WARPS = config::PRODUCT_WARPS;

// How a step's weights are read. A lane needs PLANES vectors of x for each 16 bytes of weights. A
// warp has TILES tiles of 8 rows of the weights.
template <int BITS, int GROUP, int TILES>
struct StepLayout {
  static constexpr int PACK = 128 / BITS;
  static constexpr int PLANES = PACK / 8;
  static constexpr int CHUNKS = TILE_K / (4 * PACK);
  static constexpr int DEPTH = (BITS == 4 ? 8 : 4) * 128 / (TILES * TILE_K);  // steps in flight
  static_assert(DEPTH > 0, "a step at least");
  static_assert(BITS == 16 || GROUP % PACK == 0, "the weights of 16 bytes share a scale");
};

// Up to three matrices with rows of K values, concatenated.
template <typename T>
struct Matrices {
  Matrix<T> matrices[3];
  int ends[3];  // ends[i]: total rows of matrices 0 to i
};

// A lane's weights of one step.
template <typename T, int BITS, int GROUP, int TILES>
struct LaneWeights {
  using P = StepLayout<BITS, GROUP, TILES>;

  uint4 packed[TILES][P::CHUNKS];
  T scales[TILES][P::CHUNKS], biases[TILES][P::CHUNKS];  // of quantised matrices

  // Loads chunk c of each row.
  __device__ void load(const Matrix<T>* rows, int step, int c) {
    int unit = (step * P::CHUNKS + c) * 4 + threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      packed[n][c] = load_once(static_cast<const uint4*>(rows[n].weight) + unit);
      if constexpr (BITS < 16) {
        scales[n][c] = rows[n].scales[unit * P::PACK / GROUP];
        biases[n][c] = rows[n].biases[unit * P::PACK / GROUP];
      }
    }
  }

  // Converts the next eight weights of a 16-byte unit to T and shifts the unit on.
  __device__ void next(int n, int c, unsigned int* words) {
    next_eight<T, BITS>(packed[n][c], scales[n][c], biases[n][c], words);
  }
};

// Rows of x of a tile: `count` of them from row `first` of `total`.
struct RowRange {
  int first, count, total;
};

// Index of a vector of x in its row of a stage. The vectors that four lanes read together are
// consecutive; odd rows use the other half of the banks.
__device__ inline int place(int row, int chunk_plane, int part) {
  return (chunk_plane * 4 + part) ^ (row % 2 * 4);
}

// Output columns of a warp.
template <bool GATED, int TILES>
constexpr int WARP_COLUMNS = GATED ? 4 * TILES : 8 * TILES;

// One thread block multiplies part `split` of `splits` parts of K; each warp computes the columns
// from its `first_column` on (none if that is N or more). Calls ready() before it first reads x.
//
// Not GATED: `out` is float [splits, rows, N]. GATED: the matrices are gate_proj and up_proj [N, K],
// `out` is silu(gate) * up [rows, N] and splits is 1. ROWS is 8 or a multiple of 16 and at
// least rows.count; K is a multiple of TILE_K. With 8 rows the operands are swapped: a product of
// tensor cores then has 16 rows of weights, those of two tiles, and eight of x, all of them used.
template <typename T, int BITS, int GROUP, int ROWS, bool GATED, int TILES, typename O, typename R>
__device__ void multiply_columns(
    const T* x, const Matrices<T>& matrices, RowRange rows, int K, int split, int splits,
    int first_column, O* out, R ready) {
  using P = StepLayout<BITS, GROUP, TILES>;
  constexpr int THREADS = PRODUCT_WARPS * LANES, PER_MATRIX = WARP_COLUMNS<GATED, TILES> / 8;
  constexpr int STAGE_BYTES = ROWS * TILE_K * 2;
  unsigned int stages = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  int thread = thread_of_step(), lane = thread % LANES;
  int all_steps = K / TILE_K;
  int first_step = all_steps * split / splits;
  int steps = all_steps * (split + 1) / splits - first_step;
  int N = GATED ? matrices.ends[0] : matrices.ends[2];
  bool has_columns = first_column < N;

  Matrix<T> rows_of[TILES];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    int column = min(first_column + n % PER_MATRIX * 8 + lane / 4, N - 1);
    int index = GATED ? n / PER_MATRIX : (column >= matrices.ends[0]) + (column >= matrices.ends[1]);
    Matrix<T> matrix = index == 0 ? matrices.matrices[0]
        : index == 1              ? matrices.matrices[1]
                                  : matrices.matrices[2];
    if (!GATED && index) column -= index == 1 ? matrices.ends[0] : matrices.ends[1];
    rows_of[n].weight =
        static_cast<const char*>(matrix.weight) + static_cast<long long>(column) * K * BITS / 8;
    if constexpr (BITS < 16) {
      rows_of[n].scales = matrix.scales + static_cast<long long>(column) * (K / GROUP);
      rows_of[n].biases = matrix.biases + static_cast<long long>(column) * (K / GROUP);
    }
  }

  // A thread copies the same vector of every ROW_STRIDE-th row of x.
  constexpr int ROW_STRIDE = THREADS / VECTORS;
  int row = thread / VECTORS, vector = thread % VECTORS;
  int chunk_plane = vector / (4 * P::PLANES) * P::PLANES + vector % P::PLANES;
  int vector_at = row * VECTORS + place(row, chunk_plane, vector / P::PLANES % 4);
  const T* from_x =
      x + static_cast<long long>(rows.first + row) * K + first_step * TILE_K + vector * 8;
  auto copy_x = [&](int step) {
    if (step < steps) {
      unsigned int to = stages + step % STAGES * STAGE_BYTES + vector_at * 16;
#pragma unroll
      for (int i = 0; i < ROWS; i += ROW_STRIDE) {
        if (ROWS < ROW_STRIDE && row + i >= ROWS) break;
        bool inside = row + i < rows.count;
        copy_async(to + i * VECTORS * 16, inside ? from_x + i * K + step * TILE_K : x, inside);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  LaneWeights<T, BITS, GROUP, TILES> ahead[P::DEPTH];
  auto load = [&](int d, int step, int c) {
    if (has_columns && step < steps) ahead[d].load(rows_of, first_step + step, c);
  };
#pragma unroll
  for (int d = 0; d < P::DEPTH; ++d) {
#pragma unroll
    for (int c = 0; c < P::CHUNKS; ++c) load(d, d, c);
  }
  ready();
  for (int step = 0; step < STAGES - 1; ++step) copy_x(step);

  constexpr bool FEW = ROWS == 8;
  float sums[FEW ? 1 : ROWS / 16][TILES][4] = {};
#pragma unroll 1
  for (int base = 0; base < steps; base += P::DEPTH) {
#pragma unroll
    for (int d = 0; d < P::DEPTH; ++d) {
      int step = base + d;
      if (step >= steps) break;
      asm volatile("cp.async.wait_group %0;" : : "n"(STAGES - 2));
      __syncthreads();
      copy_x(step + STAGES - 1);
      if (!has_columns) continue;
      const uint4* stage = reinterpret_cast<const uint4*>(shared + step % STAGES * STAGE_BYTES);
#pragma unroll
      for (int c = 0; c < P::CHUNKS; ++c) {
#pragma unroll(config::UNROLL ? P::PLANES : 1)
        for (int plane = 0; plane < P::PLANES; ++plane) {
          // Fragments of 16 rows of x for eight weights of a lane: two mma of 16 values of K.
          auto read_x = [&](int m, unsigned int (*a)[4]) {
            int group = m * 16 + lane / 4;
            int at = group * VECTORS + place(group, c * P::PLANES + plane, lane % 4);
            uint4 upper = stage[at], lower = stage[at + 8 * VECTORS];
            const unsigned int first[4] = {upper.x, lower.x, upper.y, lower.y};
            const unsigned int second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              a[0][i] = first[i];
              a[1][i] = second[i];
            }
          };
          if constexpr (FEW) {
            uint4 x_values =
                stage[lane / 4 * VECTORS + place(lane / 4, c * P::PLANES + plane, lane % 4)];
            const unsigned int b[4] = {x_values.x, x_values.y, x_values.z, x_values.w};
#pragma unroll
            for (int pair = 0; pair < TILES / 2; ++pair) {
              unsigned int upper[4], lower[4];
              ahead[d].next(GATED ? pair : 2 * pair, c, upper);
              ahead[d].next(GATED ? pair + PER_MATRIX : 2 * pair + 1, c, lower);
              const unsigned int first[4] = {upper[0], lower[0], upper[1], lower[1]};
              const unsigned int second[4] = {upper[2], lower[2], upper[3], lower[3]};
              multiply_add<T>(sums[0][pair], first, b);
              multiply_add<T>(sums[0][pair], second, b + 2);
            }
          } else if constexpr (ROWS <= 64) {
            // All of x first, so that these loads do not wait for the weights.
            unsigned int a[ROWS / 16][2][4];
#pragma unroll
            for (int m = 0; m < ROWS / 16; ++m) read_x(m, a[m]);
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
              unsigned int b[4];
              ahead[d].next(n, c, b);
#pragma unroll
              for (int m = 0; m < ROWS / 16; ++m) {
                multiply_add<T>(sums[m][n], a[m][0], b);
                multiply_add<T>(sums[m][n], a[m][1], b + 2);
              }
            }
          } else {
            // All of the weights first: x of so many rows does not fit into registers.
            unsigned int b[TILES][4];
#pragma unroll
            for (int n = 0; n < TILES; ++n) ahead[d].next(n, c, b[n]);
#pragma unroll
            for (int m = 0; m < ROWS / 16; ++m) {
              unsigned int a[2][4];
              read_x(m, a);
#pragma unroll
              for (int n = 0; n < TILES; ++n) {
                multiply_add<T>(sums[m][n], a[0], b[n]);
                multiply_add<T>(sums[m][n], a[1], b[n] + 2);
              }
            }
          }
        }
        load(d, step + P::DEPTH, c);
      }
    }
  }

  if constexpr (FEW) {
    // Registers 0 and 1 are two rows of x and a column of the upper tile, 2 and 3 of the lower one.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int row_index = lane % 4 * 2 + i;
      if (row_index >= rows.count) continue;
      row_index += rows.first;
#pragma unroll
      for (int pair = 0; pair < TILES / 2; ++pair) {
        const float* c = sums[0][pair];
        if constexpr (GATED) {
          int column = first_column + pair * 8 + lane / 4;
          if (column < N) {
            out[static_cast<long long>(row_index) * N + column] =
                round_to<T>(c[i] / (1 + __expf(-c[i])) * c[2 + i]);
          }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int column = first_column + (2 * pair + half) * 8 + lane / 4;
            long long at = (static_cast<long long>(split) * rows.total + row_index) * N + column;
            if (column < N) out[at] = c[2 * half + i];
          }
        }
      }
    }
    return;
  }
#pragma unroll
  for (int m = 0; m < ROWS / 16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int row_index = m * 16 + lane / 4 + half * 8;
      if (row_index >= rows.count) continue;
      row_index += rows.first;
#pragma unroll
      for (int n = 0; n < PER_MATRIX; ++n) {
        int column = first_column + n * 8 + lane % 4 * 2;
        if (column >= N) continue;
        const float* pair = sums[m][n] + 2 * half;
        if constexpr (GATED) {
          const float* up = sums[m][n + PER_MATRIX] + 2 * half;
          float gated[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) gated[i] = pair[i] / (1 + __expf(-pair[i])) * up[i];
          *reinterpret_cast<unsigned int*>(out + static_cast<long long>(row_index) * N + column) =
              pack<T>(gated[0], gated[1]);
        } else {
          long long at = (static_cast<long long>(split) * rows.total + row_index) * N + column;
          *reinterpret_cast<float2*>(out + at) = float2{pair[0], pair[1]};
        }
      }
    }
  }
}

}  // namespace moxin
